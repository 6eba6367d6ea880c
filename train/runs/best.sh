#!/usr/bin/env bash
# Train preset "best" end to end: a sweep of leads, then autoencoder, U-Net, and the few-step sampler.
#
#   train/runs/best.sh DATA [OUT]
#
# DATA is a folder that train.pairs wrote; OUT takes the weights (default: weights/best). Run it again after an
# interruption: finished parts are not repeated. Everything else is a variable of the environment:
#
#   DEVICE     auto (default: a GPU where there is one), cuda, or cpu, which takes hours
#   RUNS       folder of checkpoints, logs, samples and of the sweep's leads.csv (default: runs/best)
#   SWEEP      times the sweep's steps (default: 1 on a CPU, 10 on a GPU); 0: no sweep
#   VAE_STEPS, UNET_STEPS, TUNE_STEPS    other numbers of steps
#   INDEX      CSV file with file and patient, for names that hold no patient id
set -euo pipefail

usage="usage: train/runs/best.sh DATA [OUT]; see the head of the file"
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "$usage" >&2
    exit 2
fi
data=$(realpath -m "$1") out=$(realpath -m "${2:-weights/best}") runs=$(realpath -m "${RUNS:-runs/best}")
index=(${INDEX:+--index "$(realpath -m "$INDEX")"})
cd "$(dirname "$0")/../.."
[ -x .venv/bin/python ] && PATH="$PWD/.venv/bin:$PATH"

device=${DEVICE:-auto}
if [ "$device" = auto ]; then
    device=$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
fi
case $device in
cuda)
    sweep=${SWEEP:-10}
    vae=(--batch 64 --rate 8e-4 --steps "${VAE_STEPS:-20000}")
    unet=(--batch 256 --rate 2e-3 --steps "${UNET_STEPS:-20000}")
    tune=(--batch 48 --rate 4e-4 --steps "${TUNE_STEPS:-30000}" --crop 192)
    ;;
cpu)
    sweep=${SWEEP:-1}
    vae=(--batch 16 --rate 4e-4 --steps "${VAE_STEPS:-1500}")
    unet=(--batch 32 --rate 1e-3 --steps "${UNET_STEPS:-1800}")
    tune=(--batch 4 --rate 2e-4 --steps "${TUNE_STEPS:-6000}" --crop 192)
    ;;
*)
    echo "error: DEVICE is '$device', allowed are auto, cuda and cpu" >&2
    exit 2
    ;;
esac
start=$out-untuned
common=(--preset best --data "$data" "${index[@]}" --device "$device" --resume)

if [ "$sweep" != 0 ]; then
    python -m train.sweep --data "$data" "${index[@]}" --device "$device" --scale "$sweep" --folder "$runs/sweep" --log "$runs/leads.csv"
fi
python -m train.vae "${common[@]}" --out "$start" --run-dir "$runs/vae" --lpips 0.2 --vgg 0.1 --latent-noise 0.5 \
    --latent-drop 0.15 --whole-every 0 "${vae[@]}"
python -m train.unet "${common[@]}" --weights "$start" --run-dir "$runs/unet" --augment --passes 2 "${unet[@]}"
python -m train.tune "${common[@]}" --weights "$start" --out "$out" --run-dir "$runs/tune" "${tune[@]}"
python -m train.ranges --data "$data" "${index[@]}" --weights "$out"

echo "next: python -m train.calibrate --data '$data' --weights '$out', for the band in pipeline/spec.py"
echo "      python -m train.evaluate --data '$data' --weights '$out' --runtimes torch"
echo "      make export, if '$out' is weights/best"
