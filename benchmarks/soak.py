"""Send the server thousands of requests and check for memory growth and rising latency.

python -m benchmarks.soak --side 16
python -m benchmarks.soak --requests 2000 --rate 5 --steps 4
python -m benchmarks.soak --mixed --warm-up 0.5 --runtime onnxruntime
python -m benchmarks.soak --url localhost:8001 --pid 12345

Without a rate, ``--concurrency`` clients each send the next request after the response to the last; with a rate,
requests are sent when due and their latency counts from then. The first tenth of the requests is warm-up. The exit
status is 1 if a request failed, or if the server's memory or shared memory grew by more than ``--allowed-growth`` after
the warm-up. The last line is JSON. ``--mixed`` sends images of 16² to 96² in six file formats with seven sets of
options, gives up one request in twenty, and counts answers that differ from the first to the same request by more than
``--tolerance`` as errors: OpenVINO may round otherwise for one image at a time than for several.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.mixture import make_mixture
from benchmarks.server import server_at
from client import Client, ServerLost, ServerUnavailable, UpscaleError
from pipeline.command_line import make_parser, one_line_errors
from pipeline.serving.find import RUNTIMES
from pipeline.serving.local_server import ServerError
from pipeline.serving.processes import STUB, children
from pipeline.spec import MAX_SIDE, MIN_SIDE
from train.report import markdown

PROC = Path("/proc")
SHARE = 0.1
"""Share of requests used for warm-up by default; also the share at the start and end whose latencies are compared."""
MIN_REQUESTS = 30


class SoakError(Exception):
    """The server's processes cannot be inspected; the message says why."""


@dataclass(frozen=True)
class Memory:
    """Memory of a server, in MB (10⁶ bytes)."""

    models: dict[str, float]
    """anonymous resident memory by model, and "tritonserver". Leaks appear here; the share of a library charged to a
    process depends on other processes that map it."""
    shared: float
    """size of its files in /dev/shm"""

    @property
    def total(self) -> float:
        return sum(self.models.values())


@dataclass(frozen=True)
class Answers:
    """Results of requests, in the order in which they were due."""

    seconds: list[float]
    """latencies of successful requests"""
    errors: Counter[str]
    elapsed: float


def descendants(root: int) -> list[int]:
    """Return all descendant processes of ``root``."""
    return [pid for child in children(root) for pid in (child, *descendants(child))]


def label(pid: int) -> str:
    """Return the model name of a Python stub process, else the process name."""
    arguments = (PROC / str(pid) / "cmdline").read_bytes().decode().split("\0")
    program = Path(arguments[0]).name
    return Path(arguments[1]).parents[1].name if program == STUB else program


def memory(pids: list[int]) -> Memory:
    """Measure the memory of the server's processes.

    Raises:
        SoakError: a process has ended, or belongs to another user.
    """
    models: dict[str, float] = {}
    shared: dict[str, float] = {}
    try:
        for pid in pids:
            folder = PROC / str(pid)
            (kb,) = re.findall(r"^Anonymous: +(\d+) kB$", (folder / "smaps_rollup").read_text(), re.MULTILINE)
            name = label(pid)
            models[name] = models.get(name, 0.0) + int(kb) * 1024 / 1e6
            files = {line.split()[-1] for line in (folder / "maps").read_text().splitlines() if " /dev/shm/" in line}
            shared |= {file: Path(file).stat().st_blocks * 512 / 1e6 for file in files if Path(file).exists()}
    except (OSError, ValueError) as error:
        raise SoakError(f"cannot inspect process {pid} of the server: {error}") from error
    return Memory(models, sum(shared.values()))


def send(
    call: Callable[[int], object], numbers: range, rate: float | None, concurrency: int, name: str = "requests"
) -> Answers:
    """Send a request for each number, several at once; stop when the server is lost.

    Args:
        call: function that sends one request and raises UpscaleError on failure.
        numbers: request numbers.
        rate: requests per second; None: as fast as possible.
        concurrency: maximum number of concurrent requests.
        name: label of the progress bar.
    """
    gone = threading.Event()
    began = time.monotonic()

    def one(number: int) -> float | str:
        due = began + (number - numbers.start) / rate if rate else time.monotonic()
        time.sleep(max(0.0, due - time.monotonic()))
        if gone.is_set():
            return "not sent after the server was lost"
        try:
            call(number)
            return time.monotonic() - due
        except (ServerLost, ServerUnavailable) as error:
            gone.set()
            return str(error)
        except UpscaleError as error:
            return str(error)

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            found = list(tqdm(pool.map(one, numbers), desc=name, total=len(numbers)))
        except KeyboardInterrupt:
            gone.set()  # the pool would wait for all remaining requests
            raise
    return Answers(
        [value for value in found if isinstance(value, float)],
        Counter(value for value in found if isinstance(value, str)),
        time.monotonic() - began,
    )


def soak(
    call: Callable[[int], object],
    pids: list[int],
    requests: int,
    rate: float | None,
    concurrency: int,
    warm_up: float = SHARE,
) -> tuple[list[Memory], Answers, Counter[str]]:
    """Return (memory at the start, after warm-up and at the end; results after warm-up; errors of all requests).

    Raises:
        SoakError: see ``memory``.
    """
    warm = round(warm_up * requests)
    memories = [memory(pids)]
    warming = send(call, range(warm), rate, concurrency, "warm-up")
    memories.append(memory(pids))
    answers = send(call, range(warm, requests), rate, concurrency)
    memories.append(memory(pids))
    return memories, answers, warming.errors + answers.errors


def summary(memories: list[Memory], answers: Answers, errors: Counter[str]) -> dict[str, Any]:
    """Return the results; growth and drift are relative to the value after the warm-up, 0 if nothing changed."""
    start, warm, end = memories
    part = max(1, round(SHARE * len(answers.seconds)))
    figures: dict[str, Any] = {
        "start_mb": start.total,
        "warm_mb": warm.total,
        "end_mb": end.total,
        "growth": end.total / warm.total - 1,
        "shm_start_mb": start.shared,
        "shm_warm_mb": warm.shared,
        "shm_end_mb": end.shared,
        "shm_growth": end.shared / warm.shared - 1 if warm.shared else 0.0,
        "requests_per_s": len(answers.seconds) / answers.elapsed,
    }
    if answers.seconds:
        p50, p99 = np.quantile(answers.seconds, (0.5, 0.99))
        first, last = (statistics.median(tenth) for tenth in (answers.seconds[:part], answers.seconds[-part:]))
        figures |= {"p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "drift": last / first - 1}
    return {"errors": errors.total(), **{name: round(float(value), 4) for name, value in figures.items()}}


def report(figures: dict[str, Any], memories: list[Memory], errors: Counter[str]) -> str:
    """Format the results as text."""
    used = {name: [m.models.get(name, 0.0) for m in memories] for name in memories[0].models}
    used |= {"total": [m.total for m in memories], "/dev/shm": [m.shared for m in memories]}
    rows = [[name, *(f"{mb:.1f}" for mb in row)] for name, row in used.items()]
    lines = ["", markdown(["MB", "start", "after warm-up", "end"], rows)]
    lines.append(f"\nmemory {figures['growth']:+.1%}, /dev/shm {figures['shm_growth']:+.1%} since the warm-up")
    if "drift" in figures:
        latency = f"p50 {figures['p50_ms']:.0f} ms, p99 {figures['p99_ms']:.0f} ms"
        drift = f"median of the last tenth {figures['drift']:+.1%} relative to the first"
        lines.append(f"{figures['requests_per_s']:.1f} requests/s, {latency}; {drift}")
    lines += [f"{count} errors: {text}" for text, count in errors.most_common()]
    return "\n".join(lines)


def processes(pid: int | None) -> list[int]:
    """Return the processes of the server ``pid``, or of the one that this process started; raise SoakError without."""
    if pid is None:
        return descendants(os.getpid())
    if not (PROC / str(pid)).exists():
        raise SoakError(f"--pid must be the process of tritonserver, got {pid}, which does not exist")
    return [pid, *descendants(pid)]


@one_line_errors(ServerError, SoakError, UpscaleError)
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--rate", type=float, help="requests per second (default: as fast as possible)")
    parser.add_argument("--concurrency", type=int, default=4, help="maximum concurrent requests (default: %(default)s)")
    parser.add_argument("--side", type=int, default=64, help="side of the LR image (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=SHARE, help="share of the requests (default: %(default)s)")
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="of the started server (default: auto)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="gray levels, for --mixed (default: %(default)s)")
    parser.add_argument("--mixed", action="store_true", help="mixed sizes, formats, options and cancelled requests")
    parser.add_argument(
        "--allowed-growth", type=float, default=0.1, help="maximum memory growth, as a share (default: %(default)s)"
    )
    parser.add_argument("--url", help="gRPC address of a running server (default: start one)")
    parser.add_argument("--pid", type=int, help="process ID of that server's tritonserver, on this machine")
    args = parser.parse_args(argv)
    if (args.url is None) != (args.pid is None):
        parser.error("arguments --url and --pid must be used together")
    if args.requests < MIN_REQUESTS:
        parser.error(f"argument --requests: must be {MIN_REQUESTS} or more, got {args.requests}")
    if not MIN_SIDE <= args.side <= MAX_SIDE:
        parser.error(f"argument --side: must be {MIN_SIDE}–{MAX_SIDE}, got {args.side}")
    if args.concurrency < 1 or (args.rate is not None and not args.rate > 0):
        parser.error("arguments --concurrency and --rate: must be above 0")
    if not 0 < args.warm_up < 1:
        parser.error(f"argument --warm-up: must be between 0 and 1, got {args.warm_up:g}")
    image = np.random.default_rng(0).random((args.side, args.side), dtype=np.float32)
    with server_at(args.url, flags=[f"--runtime={args.runtime}"]) as url, tempfile.TemporaryDirectory() as folder:
        pids = processes(args.pid)
        with Client(url) as client:
            client.check(steps=args.steps)
            mixture = make_mixture(client, Path(folder), args.tolerance) if args.mixed else None
            call = mixture.call if mixture else lambda number: client.upscale(image, seed=number, steps=args.steps)
            memories, answers, errors = soak(call, pids, args.requests, args.rate, args.concurrency, args.warm_up)
    figures = summary(memories, answers, errors) | (
        {**mixture.outcomes, "largest_difference": mixture.largest} if mixture else {}
    )
    print(f"{report(figures, memories, errors)}\n{json.dumps(figures)}")
    grown = max(figures["growth"], figures["shm_growth"]) > args.allowed_growth
    if grown:
        print(f"error: memory grew by more than {args.allowed_growth:.0%}", file=sys.stderr)
    if errors:
        print(f"error: {errors.total()} requests failed", file=sys.stderr)
    return 1 if grown or errors else 0


if __name__ == "__main__":
    sys.exit(main())
