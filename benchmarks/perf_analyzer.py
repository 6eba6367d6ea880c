"""Run Triton's perf_analyzer: the one on PATH, else the one in the wheel tritonclient==2.46.0.

python -m benchmarks.perf_analyzer -m unet_onnx --shape x:8,32,32 --shape t:1 --concurrency-range 1:4
python -m benchmarks.perf_analyzer -m superres --input-data benchmarks/superres.json -i grpc -u localhost:8001

All arguments go to perf_analyzer as they are. Newer releases of its wheel need glibc 2.38; this one's libraries
(libb64, the CUDA runtime) are taken from the wheel nvidia-pytriton, where they have hashed names.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WHEEL = Path(sys.prefix) / "perf_analyzer"
LIBRARIES = ("libb64.so.0d", "libcudart.so.12")


UNSTABLE = "Failed to obtain stable measurement"
ANY_PERCENTAGE = 100_000
"""A percentage that every measurement is within."""
TRIALS = 4
"""Windows at most; the figures are those of the last three."""
TIMEOUT = 1800
"""Seconds that one measurement may take."""


class PerfAnalyzerError(Exception):
    """perf_analyzer is not here, failed, or reported nothing that can be read; the message says what to do or why."""


@dataclass(frozen=True)
class Measurement:
    """What perf_analyzer found at one load."""

    throughput: float
    """inferences a second"""
    p50_ms: float
    p99_ms: float
    queue_ms: float
    """of a request in the queue of the model that was called, mean"""
    stable: bool
    """whether three windows in a row agreed within the percentage that was allowed"""


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


def read_report(path: Path, stable: bool = True) -> Measurement:
    """The only load in a CSV report (``perf_analyzer -f``).

    Raises:
        PerfAnalyzerError: there is no report, no load or another number of them, or a figure is missing.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise PerfAnalyzerError(f"perf_analyzer left no report: {error}") from error
    if len(rows) != 1:
        raise PerfAnalyzerError(f"perf_analyzer's report '{path}' holds {len(rows)} loads, expected is one")
    try:
        throughput, p50, p99, queue = (
            float(rows[0][name]) for name in ("Inferences/Second", "p50 latency", "p99 latency", "Server Queue")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PerfAnalyzerError(f"perf_analyzer's report '{path}' lacks a figure: {error}") from error
    return Measurement(throughput, p50 / 1e3, p99 / 1e3, queue / 1e3, stable)


def error_line(output: str) -> str:
    """Why perf_analyzer failed, by what it printed: the error itself, not the lines around it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror: ", line)] or lines[-1:] or ["it printed nothing"]
    return re.sub(r"^(error|Thread \[\d+\] had error): |\[request id: <id_unknown>\] ", "", errors[0])


def measure(arguments: Sequence[str], requests: int, stability: int = 50) -> Measurement:
    """Run perf_analyzer on one load.

    Args:
        arguments: model, address, input and load.
        requests: in each window, at least.
        stability: percentage within which three windows must agree; where they do not, another run takes them as they
            are, and the result says so.

    Raises:
        PerfAnalyzerError: it is not installed, fails or does not end.
    """
    binary, environment = find()
    for percentage in (stability, ANY_PERCENTAGE):
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.csv"
            windows = ["--measurement-mode", "count_windows", "--measurement-request-count", str(requests)]
            trials = ["-r", str(TRIALS), "-s", str(percentage), "-f", str(report)]
            try:
                result = subprocess.run(
                    [binary, *arguments, *windows, *trials],
                    env={**os.environ, **environment},
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=TIMEOUT,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise PerfAnalyzerError(
                    f"perf_analyzer is not done after {TIMEOUT} s: ask for fewer requests"
                ) from None
            if result.returncode == 0:
                return read_report(report, stable=percentage == stability)
            if UNSTABLE not in result.stderr:
                break
    raise PerfAnalyzerError(f"perf_analyzer failed: {error_line(result.stderr or result.stdout)}")


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
