"""Run Triton's perf_analyzer: the one on PATH, else the one in the wheel tritonclient==2.46.0.

python -m benchmarks.perf_analyzer -m unet_onnx --shape x:8,32,32 --shape t:1 --concurrency-range 1:4
python -m benchmarks.perf_analyzer -m superres --input-data benchmarks/superres.json -i grpc -u localhost:8001

All arguments go to perf_analyzer as they are. Newer releases of its wheel need glibc 2.38; this one's libraries
(libb64, the CUDA runtime) are taken from the wheel nvidia-pytriton, where they have hashed names.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

WHEEL = Path(sys.prefix) / "perf_analyzer"
LIBRARIES = ("libb64.so.0d", "libcudart.so.12")


class PerfAnalyzerError(Exception):
    """perf_analyzer or a library of its own is not here; the message says what to install."""


def link_libraries(folder: Path) -> Path:
    """A folder that holds perf_analyzer's libraries under the names that it asks for."""
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        raise PerfAnalyzerError(
            "perf_analyzer's libraries are in nvidia-pytriton: pip install --no-deps nvidia-pytriton==0.7.0"
        )
    folder.mkdir(exist_ok=True)
    for name in LIBRARIES:
        stem, _, version = name.partition(".so.")
        found = sorted((Path(wheel.origin).parents[1] / "nvidia_pytriton.libs").glob(f"{stem}-*.so.{version}*"))
        if not found:
            raise PerfAnalyzerError(f"nvidia-pytriton holds no {name}")
        link = folder / name
        if not link.exists():
            link.symlink_to(found[0])
    return folder


def find() -> tuple[str, dict[str, str]]:
    """(binary, environment variables it needs).

    Raises:
        PerfAnalyzerError: it is not installed.
    """
    if on_path := shutil.which("perf_analyzer"):
        return on_path, {}
    binary = WHEEL / "bin" / "perf_analyzer"
    if not binary.is_file():
        raise PerfAnalyzerError(
            "no perf_analyzer on PATH or in the virtual environment: run `make .venv/perf_analyzer`"
        )
    binary.chmod(0o755)
    return str(binary), {"LD_LIBRARY_PATH": str(link_libraries(WHEEL / "lib"))}


def main() -> int:
    try:
        binary, environment = find()
    except PerfAnalyzerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    os.execve(binary, [binary, *sys.argv[1:]], {**os.environ, **environment})
    return None


if __name__ == "__main__":
    sys.exit(main())
