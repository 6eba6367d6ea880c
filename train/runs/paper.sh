#!/usr/bin/env bash
# Train preset "paper" end to end: the autoencoder, then the U-Net on its latents.
#
#   train/runs/paper.sh DATA [OUT]
#
# DATA is a folder written by train.pairs; OUT is the folder for the weights (default: weights/paper). Run it again after
# an interruption: finished stages are not repeated. Other settings are environment variables:
#
#   DEVICE     auto (default: a GPU if there is one), cuda, or cpu, which takes hours with reduced settings
#   RUNS       folder for checkpoints, logs and samples (default: runs/paper)
#   VAE_STEPS, UNET_STEPS    numbers of steps
#   VAE_FROM, UNET_FROM      autoencoder folder and weights folder to start from
#   INDEX      CSV file with the columns file and patient, for file names without a patient ID
set -euo pipefail

usage="usage: train/runs/paper.sh DATA [OUT]; see the comments in the file"
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "$usage" >&2
    exit 2
fi
data=$(realpath -m "$1") out=$(realpath -m "${2:-weights/paper}") runs=$(realpath -m "${RUNS:-runs/paper}")
for name in VAE_FROM UNET_FROM; do # VAE_FROM may also be a name on the hub
    if [ -d "${!name:-}" ]; then export "$name=$(realpath "${!name}")"; fi
done
index=(${INDEX:+--index "$(realpath -m "$INDEX")"})
cd "$(dirname "$0")/../.."
[ -x .venv/bin/python ] && PATH="$PWD/.venv/bin:$PATH"

device=${DEVICE:-auto}
if [ "$device" = auto ]; then
    device=$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
fi
case $device in
cuda)
    vae=(--batch 32 --rate 8e-4 --steps "${VAE_STEPS:-12000}")
    unet=(--batch 256 --rate 2e-3 --steps "${UNET_STEPS:-20000}")
    ;;
cpu)
    vae=(--batch 4 --rate 4e-4 --steps "${VAE_STEPS:-9000}")
    unet=(--batch 64 --rate 1e-3 --steps "${UNET_STEPS:-6000}")
    ;;
*)
    echo "error: DEVICE must be one of auto, cuda, cpu, got '$device'" >&2
    exit 2
    ;;
esac
common=(--preset paper --data "$data" "${index[@]}" --out "$out" --device "$device" --resume)

python -m train.vae "${common[@]}" --run-dir "$runs/vae" ${VAE_FROM:+--vae "$VAE_FROM"} "${vae[@]}"
python -m train.unet "${common[@]}" --run-dir "$runs/unet" --weights "$out" ${UNET_FROM:+--unet "$UNET_FROM"} "${unet[@]}"

echo "next: python -m train.evaluate --preset paper --data '$data' --weights '$out' --runtimes torch"
echo "      make export PRESET=paper, if '$out' is weights/paper"
