"""Run the command's jobs concurrently: read, upscale, write, and report each result."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tqdm import tqdm

from client.api import Client, validated
from client.errors import BadRequest, NotAllowed, ServerLost, UpscaleError
from client.formats.source import FileError, Source
from client.jobs import Finder, Job
from client.outputs import check_outputs, is_done, notes_of, write_outputs
from client.reader import Reader
from client.results import Upscaled
from client.terminal import on_one_line
from pipeline.interrupts import uninterrupted
from pipeline.method.images import Image
from pipeline.method.options import InvalidRequest
from pipeline.presets import Preset
from pipeline.spec import MIN_SIDE, SCALE

CONNECTION = ("protocol", "wait", "timeout", "tls", "ca", "token", "priority")
"""Options that say how to reach the server."""
MEAN_SAMPLES = 8
"""Default samples for --mean, and for --uncertainty if the networks cannot estimate it from one sample."""
GRACE = 2.0
"""Seconds that images in progress have to finish after an interruption, before they are cancelled on the server."""
IN_FLIGHT = 8
"""Maximum concurrent requests, which the server batches."""


def options_of(args: argparse.Namespace, preset: Preset) -> dict[str, Any]:
    """Return the options of ``Client.upscale`` except the seed; None: the preset's default.

    Raises:
        InvalidRequest: there are too few samples for the uncertainty with this preset.
    """
    names = ("steps", "sampler", "start", "samples", "faithful", "degradation", "denoiser")
    options = {**{name: getattr(args, name) for name in names}, "output": "mean" if args.mean else None}
    scatter = args.uncertainty and preset.band.scale(1) is None
    if args.samples is None and (args.mean or scatter):
        options["samples"] = MEAN_SAMPLES
    elif scatter and args.samples == 1:
        raise InvalidRequest(f"--uncertainty: preset '{preset.name}' needs --samples of 2 or more")
    return options


def check_sides(path: Path, image: Image, max_side: int) -> None:
    """Raises FileError if the image is too small or too large to upscale."""
    height, width = image.shape
    if max(height, width) > max_side or min(height, width) < MIN_SIDE:
        hint = " (--downscale N makes it smaller)" if max(height, width) > max_side else ""
        raise FileError(f"'{path}' must be {MIN_SIDE}–{max_side} pixels per side, got {width}×{height}{hint}")


def read_reference(reader: Reader, job: Job, args: argparse.Namespace, lr: Image) -> Image:
    """Return the image to compare with, [4H, 4W]; raises FileError if it is not of that size."""
    hr = reader.read(args.compare, args.choice if args.compare == job.path else None).image
    height, width = (SCALE * side for side in lr.shape)
    if not (0 <= hr.shape[0] - height < SCALE and 0 <= hr.shape[1] - width < SCALE):
        raise FileError(f"'{args.compare}' must be {width}×{height} to compare, got {hr.shape[1]}×{hr.shape[0]}")
    return hr[:height, :width]


def upscale_watched(client: Client, image: Image, name: str, options: dict[str, Any]) -> Upscaled:
    """Upscale an image and show its progress."""
    with tqdm(desc=on_one_line(name), unit="step", leave=False, mininterval=0) as bar:
        for event in client.stream(image, **options):
            bar.total, bar.n = event.steps, event.step
            bar.refresh()
            if event.result is not None:
                return event.result
    raise ServerLost("the server ended the answer before the result")


def upscale_file(client: Client, reader: Reader, job: Job, args: argparse.Namespace) -> Outcome:
    """Read, upscale and write an image; return None if it is skipped because its outputs exist."""
    if args.skip_existing and is_done(job, args):
        return None
    check_outputs(job, args)
    source = reader.read(job.path, args.choice, args.downscale)
    check_sides(job.path, source.image, client.preset.max_side)
    hr = read_reference(reader, job, args, source.image) if args.compare else None
    try:
        options = options_of(args, client.preset)
        options |= {"seed": args.seed, "pixel_mm": source.pixel_mm}
        if args.progress:
            result = upscale_watched(client, source.image, job.path.name, options)
        else:
            result = client.upscale(source.image, **options)
    except BadRequest as error:
        raise BadRequest(f"'{job.path}': {error}") from error
    write_outputs(job, args, source, result, hr)
    return source, result


Outcome = tuple[Source, Upscaled] | None
"""The source and its result; None if skipped because the outputs exist."""


def line_of(job: Job, source: Source, result: Upscaled) -> str:
    """Return the line that reports an upscaled image."""
    notes, (height, width) = notes_of(source, result), result.image.shape
    line = f"{job.path} → {job.target}: {width}×{height} in {result.seconds:.1f} s"
    return on_one_line(f"{line} ({notes})" if notes else line)


@dataclass
class Tally:
    """Number of inputs by outcome, each reported beside the progress bar as it is added."""

    bar: tqdm[Any]
    done: int = 0
    skipped: int = 0
    failed: int = 0

    def fail(self, problem: str) -> None:
        self.failed += 1
        report(problem, self.bar)
        self.bar.update()

    def add(self, job: Job, outcome: Outcome) -> None:
        """Add the outcome of a job that did not fail."""
        if outcome is None:
            self.skipped += 1
        else:
            self.done += 1
            self.bar.write(line_of(job, *outcome), file=sys.stdout)
        self.bar.update()


def search_in_background(finder: Finder, bar: tqdm[Any]) -> Iterator[Job | FileError]:
    """Yield the finder's jobs while a thread searches for more and updates the bar's total."""
    found: SimpleQueue[Job | FileError | BaseException | None] = SimpleQueue()

    def search() -> None:
        try:
            for item in finder.jobs():
                bar.total = (bar.total or 0) + 1
                found.put(item)
            found.put(None)
        except BaseException as error:  # reraised by the consumer
            found.put(error)

    threading.Thread(target=search, daemon=True).start()
    while (item := found.get()) is not None:
        if isinstance(item, BaseException) and not isinstance(item, FileError):
            raise item
        yield item


def upscale_all(items: Iterator[Job | FileError], args: argparse.Namespace, bar: tqdm[Any]) -> Tally:
    """Execute all jobs concurrently and report each result.

    Raises:
        UpscaleError: there is no server, or it rejects the options.
    """
    tally, client = Tally(bar), None
    # reader and client must outlive the pool, whose running jobs use them
    with ExitStack() as stack:
        reader = stack.enter_context(Reader())
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            jobs = Jobs(pool, tally)
            try:
                for item in items:
                    if isinstance(item, FileError):
                        tally.fail(str(item))
                    elif args.skip_existing and is_done(item, args):
                        tally.add(item, None)
                    else:
                        client = client or stack.enter_context(connected(args))
                        jobs.submit(item, upscale_file, client, reader, item, args)
                jobs.collect(leave=0)
            except (KeyboardInterrupt, OSError) as error:
                with uninterrupted():
                    pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, KeyboardInterrupt):
                    bar.write("interrupted: finishing the images in progress", file=sys.stderr)
                    jobs.wait(GRACE)
                    if client is not None:
                        client.close()
                raise
    return tally


@contextmanager
def connected(args: argparse.Namespace) -> Iterator[Client]:
    """Yield a client of a server that allows the options; raise UpscaleError if there is none."""
    with Client(args.url, **{name: getattr(args, name) for name in CONNECTION}) as client:
        client.check(args.seed, **validated(options_of, args, client.preset))
        yield client


class Jobs:
    """Concurrent jobs, the outcomes of which are added to a tally in the order in which they finish."""

    def __init__(self, pool: ThreadPoolExecutor, tally: Tally) -> None:
        self.pool, self.tally = pool, tally
        self.running: dict[Future[Outcome], Job] = {}
        self.finished: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self.server_gone = threading.Event()

    def submit(self, job: Job, function: Callable[..., Outcome], *args: Any) -> None:
        """Begin a job, once there are not too many; collect those that have finished."""
        with uninterrupted():
            future = self.pool.submit(self._run, function, *args)
            self.running[future] = job
            future.add_done_callback(self.finished.put)
        self.collect(leave=2 * IN_FLIGHT - 1)

    def _run(self, function: Callable[..., Outcome], *args: Any) -> Outcome:
        if self.server_gone.is_set():
            raise ServerLost("not sent: the server is gone")
        try:
            return function(*args)
        except (NotAllowed, ServerLost):  # no other image would fare better
            self.server_gone.set()
            raise

    def collect(self, leave: int) -> None:
        """Add what has finished, and wait until at most ``leave`` jobs are running."""
        while len(self.running) > leave or not self.finished.empty():
            future = self.finished.get()
            job = self.running.pop(future)
            try:
                with uninterrupted():
                    outcome = future.result()
            except (FileError, UpscaleError) as error:
                self.tally.fail(str(error) if str(job.path) in str(error) else f"'{job.path}': {error}")
            else:
                self.tally.add(job, outcome)

    def wait(self, seconds: float) -> None:
        """Wait until all jobs have finished, but not longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        with suppress(Empty):
            for _ in self.running:
                self.finished.get(timeout=max(0.0, deadline - time.monotonic()))


def report(problem: str, bar: tqdm[Any]) -> None:
    bar.write(on_one_line(f"error: {problem}"), file=sys.stderr)
