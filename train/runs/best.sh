#!/usr/bin/env bash
# Train preset "best" end to end, from the data to the served ONNX files:
#
#   train/runs/best.sh DATA [OUT]
#
# autoencoder, U-Net, the autoencoder's restorer, all together on few-step samples, the doubt, the classifier of rotated
# and inverted images, the ranges for INT8, the fit of the band (printed), and the export. DATA is a folder written by
# train.pairs; OUT is the folder for the weights (default: weights/best), with intermediate weights in OUT-untuned,
# OUT-restoring and OUT-tuned. Run it again after an interruption: finished stages are not repeated. Other settings are
# environment variables:
#
#   DEVICE     auto (default: a GPU if there is one), cuda, or cpu, which takes a day
#   RUNS       folder for checkpoints, logs, samples and the sweep's ablations.csv (default: runs/best)
#   STAGES     stages to run (default: vae unet restore tune doubt presentation ranges calibrate export)
#   MINUTES    time limit, with a single stage (default: 0, none); used by train/runs/slice.sh
#   SWEEP      scale of a sweep before the stages (default: 0, no sweep; 10 is for a GPU)
#   MODELS     model repository for the export (default: models-best); the served one is model_repository
#   LIMIT      maximum number of images for the ranges and the band (default: no limit)
#   VAE_STEPS, UNET_STEPS, RESTORE_STEPS, TUNE_STEPS, DOUBT_STEPS, PRESENTATION_STEPS    numbers of steps
#   INDEX      CSV file with the columns file and patient, for file names without a patient ID
set -euo pipefail

usage="usage: train/runs/best.sh DATA [OUT]; see the comments in the file"
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "$usage" >&2
    exit 2
fi
data=$(realpath -m "$1") out=$(realpath -m "${2:-weights/best}") runs=$(realpath -m "${RUNS:-runs/best}")
models=$(realpath -m "${MODELS:-models-best}")
index=(${INDEX:+--index "$(realpath -m "$INDEX")"})
limit=(${LIMIT:+--limit "$LIMIT"})
cd "$(dirname "$0")/../.."
[ -x .venv/bin/python ] && PATH="$PWD/.venv/bin:$PATH"

stages=${STAGES:-vae unet restore tune doubt presentation ranges calibrate export} minutes=${MINUTES:-0}
for stage in $stages; do
    case $stage in
    vae | unet | restore | tune | doubt | presentation | ranges | calibrate | export) ;;
    *)
        echo "error: STAGES must be among vae, unet, restore, tune, doubt, presentation, ranges, calibrate, export, got '$stage'" >&2
        exit 2
        ;;
    esac
done
if [ "$minutes" != 0 ] && [[ $stages = *" "* ]]; then
    echo "error: STAGES must be a single stage with MINUTES, got '$stages'" >&2
    exit 2
fi
device=${DEVICE:-auto}
if [ "$device" = auto ]; then
    device=$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
fi
case $device in
cuda) # tune is sized for about ten minutes
    vae=(--batch 64 --rate 8e-4 --steps "${VAE_STEPS:-20000}")
    unet=(--batch 256 --rate 2e-3 --steps "${UNET_STEPS:-20000}")
    restore=(--batch 64 --rate 2e-3 --steps "${RESTORE_STEPS:-10000}")
    tune=(--batch 48 --rate 4e-4 --steps "${TUNE_STEPS:-15000}")
    doubt=(--batch 32 --rate 2e-3 --steps "${DOUBT_STEPS:-4000}")
    ;;
cpu)
    vae=(--batch 16 --rate 4e-4 --steps "${VAE_STEPS:-1500}")
    unet=(--batch 32 --rate 1e-3 --steps "${UNET_STEPS:-1800}")
    restore=(--batch 32 --rate 2e-3 --steps "${RESTORE_STEPS:-6000}")
    tune=(--batch 4 --rate 2e-4 --steps "${TUNE_STEPS:-6000}")
    doubt=(--batch 8 --rate 2e-3 --steps "${DOUBT_STEPS:-2000}")
    ;;
*)
    echo "error: DEVICE must be one of auto, cuda, cpu, got '$device'" >&2
    exit 2
    ;;
esac
# arguments: training module, options
train() {
    python -m "train.$1" --preset best --data "$data" "${index[@]}" --device "$device" --resume --minutes "$minutes" \
        --run-dir "$runs/$1" "${@:2}"
}

if [ "${SWEEP:-0}" != 0 ]; then
    python -m train.sweep --data "$data" "${index[@]}" --device "$device" --scale "$SWEEP" --folder "$runs/sweep" --log "$runs/ablations.csv"
fi
for stage in $stages; do
    echo "== $stage"
    case $stage in
    vae) train vae --out "$out-untuned" --lpips 0.2 --vgg 0.1 --latent-noise 0.5 --latent-drop 0.15 --whole-every 0 "${vae[@]}" ;;
    unet) train unet --weights "$out-untuned" --augment --passes 2 "${unet[@]}" ;;
    restore) train restore --weights "$out-untuned" --out "$out-restoring" "${restore[@]}" ;;
    tune) train tune --weights "$out-restoring" --out "$out-tuned" --crop 192 "${tune[@]}" ;;
    doubt) train doubt --weights "$out-tuned" --out "$out" --crop 192 "${doubt[@]}" ;;
    presentation) train presentation --weights "$out" --steps "${PRESENTATION_STEPS:-3000}" ;;
    ranges) python -m train.ranges --data "$data" "${index[@]}" "${limit[@]}" --weights "$out" ;;
    calibrate) python -m train.calibrate --data "$data" "${index[@]}" "${limit[@]}" --weights "$out" --device "$device" ;;
    export) python -m pipeline.export --weights "$out" --model-repository "$models" ;;
    esac
done

[ "$minutes" != 0 ] && exit
echo "next: copy the band fitted by calibrate into pipeline/presets.py"
echo "      python -m train.evaluate --data '$data' --weights '$out' --runtimes torch"
