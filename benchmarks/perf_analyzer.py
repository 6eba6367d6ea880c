"""Run Triton's perf_analyzer from PATH, or else from the wheel tritonclient==2.46.0.

python -m benchmarks.perf_analyzer -m unet_onnx --shape x:8,32,32 --shape t:1 --concurrency-range 1:4
python -m benchmarks.perf_analyzer -m superres --input-data benchmarks/superres.json -i grpc -u localhost:8001

All arguments are passed to perf_analyzer. Newer releases of its wheel need glibc 2.38; the libraries of this one
(libb64, the CUDA runtime) come from the wheel nvidia-pytriton, where their names are hashed.
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

from pipeline.command_line import one_line_errors

WHEEL = Path(sys.prefix) / "perf_analyzer"
LIBRARIES = ("libb64.so.0d", "libcudart.so.12")

UNSTABLE = "Failed to obtain stable measurement"
ANY_PERCENTAGE = 100_000
"""Percentage within which all measurements agree."""
TRIALS = 4
"""Maximum number of windows; results are those of the last three."""
TIMEOUT = 1800
"""Maximum seconds per measurement."""


class PerfAnalyzerError(Exception):
    """perf_analyzer is not installed, failed, or wrote no readable report; the message says why or what to do."""


@dataclass(frozen=True)
class Measurement:
    """Results of perf_analyzer at one load."""

    throughput: float
    """inferences per second"""
    p50_ms: float
    p99_ms: float
    queue_ms: float
    """mean time per request in the called model's queue"""
    stable: bool
    """whether three consecutive windows agreed within the allowed percentage"""


def link_libraries(folder: Path) -> Path:
    """Link perf_analyzer's libraries into a folder under the expected names."""
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
            raise PerfAnalyzerError(f"nvidia-pytriton has no {name}")
        link = folder / name
        if not link.exists():
            link.symlink_to(found[0])
    return folder


def find() -> tuple[str, dict[str, str]]:
    """Return (binary, required environment variables).

    Raises:
        PerfAnalyzerError: perf_analyzer is not installed.
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
    """Read the only load in a CSV report (``perf_analyzer -f``).

    Raises:
        PerfAnalyzerError: there is no report, it does not have exactly one load, or a value is missing.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise PerfAnalyzerError(f"perf_analyzer wrote no report: {error}") from error
    if len(rows) != 1:
        raise PerfAnalyzerError(f"perf_analyzer's report '{path}' must have one load, got {len(rows)}")
    try:
        throughput, p50, p99, queue = (
            float(rows[0][name]) for name in ("Inferences/Second", "p50 latency", "p99 latency", "Server Queue")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PerfAnalyzerError(f"perf_analyzer's report '{path}' has a missing or invalid value: {error}") from error
    return Measurement(throughput, p50 / 1e3, p99 / 1e3, queue / 1e3, stable)


def error_line(output: str) -> str:
    """Return the error in perf_analyzer's output, without the lines around it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror: ", line)] or lines[-1:] or ["it printed nothing"]
    return re.sub(r"^(error|Thread \[\d+\] had error): |\[request id: <id_unknown>\] ", "", errors[0])


def measure(arguments: Sequence[str], requests: int, stability: int = 50) -> Measurement:
    """Run perf_analyzer on one load.

    Args:
        arguments: model, address, input and load.
        requests: minimum requests per window.
        stability: percentage within which three windows must agree; if they do not, another run accepts any windows,
            and the result is marked as not stable.

    Raises:
        PerfAnalyzerError: perf_analyzer is not installed, fails or times out.
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
                raise PerfAnalyzerError(f"perf_analyzer timed out after {TIMEOUT} s: use fewer requests") from None
            if result.returncode == 0:
                return read_report(report, stable=percentage == stability)
            if UNSTABLE not in result.stderr:
                break
    raise PerfAnalyzerError(f"perf_analyzer failed: {error_line(result.stderr or result.stdout)}")


@one_line_errors(PerfAnalyzerError)
def main() -> None:
    binary, environment = find()
    os.execve(binary, [binary, *sys.argv[1:]], {**os.environ, **environment})


if __name__ == "__main__":
    sys.exit(main())
