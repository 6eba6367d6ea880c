#!/usr/bin/env bash
# Run benchmarks.gpu on a machine with an NVIDIA GPU and keep what it prints in results/gpu/.
#
#   benchmarks/gpu.sh [--install] [OPTION…]
#
# Every OPTION goes to `python -m benchmarks.gpu`; --help lists them. --install first installs, by pip, what the ways need
# beside PyTorch; without it nothing is installed, and what is not there is left out. PYTHON names another interpreter
# (default: .venv/bin/python where it is, else python3).
set -euo pipefail

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

fail() {
    echo "error: $1" >&2
    exit 1
}

# says what pip is about to do; a package that cannot be had leaves the others
install() {
    echo "installing: $*"
    "$python" -m pip --disable-pip-version-check install --quiet "$@" || echo "not installed: $*" >&2
}

command -v "$python" >/dev/null || fail "there is no '$python': install Python 3.10 or newer, or name one with PYTHON=…"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "'$python' is older than Python 3.10"
"$python" -c 'import torch' 2>/dev/null || fail "'$python' has no PyTorch: pip install torch, as pytorch.org says for this CUDA"

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
        fail "PyTorch finds no CUDA device here; --device cpu runs what needs none"
    ;;
esac

mkdir -p results/gpu
log=results/gpu/$(date +%Y%m%d-%H%M%S).txt
"$python" -m benchmarks.gpu "$@" | tee "$log"
echo "kept in $log" >&2
