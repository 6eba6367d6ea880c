#!/usr/bin/env bash
# Run benchmarks.gpu on a machine with an NVIDIA GPU and save its output in results/gpu/.
#
#   benchmarks/gpu.sh [--install] [OPTION…]
#
# Each OPTION is passed to `python -m benchmarks.gpu`; --help lists them. --install first installs all packages needed
# besides PyTorch with pip; without it, variants that are not installed are skipped. PYTHON sets the interpreter (default:
# .venv/bin/python if it exists, else python3).
set -euo pipefail

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

fail() {
    echo "error: $1" >&2
    exit 1
}

# prints what pip installs; a package that cannot be installed does not affect the others
install() {
    echo "installing: $*"
    "$python" -m pip --disable-pip-version-check install --quiet "$@" || echo "not installed: $*" >&2
}

command -v "$python" >/dev/null || fail "'$python' not found: install Python 3.10 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "'$python' must be Python 3.10 or newer"
"$python" -c 'import torch' 2>/dev/null || fail "'$python' has no PyTorch: pip install torch, following pytorch.org for this CUDA version"

if [ "${1:-}" = --install ]; then
    shift
    install numpy 'opencv-python-headless>=4.8,<5' pillow pydicom tqdm 'diffusers>=0.30' safetensors 'tritonclient[grpc,http]>=2.46'
    install onnx onnxscript
    install 'onnxruntime-gpu[cuda,cudnn]>=1.21'
    install 'tensorrt>=10.1'
    install tensorrt-rtx
    install 'nvidia-modelopt[onnx]'
fi

missing=$("$python" -c '
from importlib.util import find_spec
print(*(name for name in ("numpy", "cv2", "tqdm", "diffusers", "safetensors") if find_spec(name) is None))
')
[ -z "$missing" ] || fail "'$python' lacks: $missing; benchmarks/gpu.sh --install installs them"
case " $* " in
*" --device cpu "* | *" --device=cpu "* | *" --help "* | *" -h "*) ;;
*)
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        fail "PyTorch finds no CUDA device: use --device cpu"
    ;;
esac

mkdir -p results/gpu
log=results/gpu/$(date +%Y%m%d-%H%M%S).txt
"$python" -m benchmarks.gpu "$@" | tee "$log"
echo "saved in $log" >&2
