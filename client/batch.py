"""Run the command's jobs concurrently: read, upscale, write, and report each result."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tqdm import tqdm

from client.api import BadRequest, Client, NotAllowed, ServerLost, UpscaleError, validated
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

    def skip(self) -> None:
        self.skipped += 1
        self.bar.update()

    def add(self, job: Job, outcome: Outcome) -> None:
        """Add the outcome of a finished job."""
        if outcome is None:
            self.skip()
            return
        self.done += 1
        self.bar.write(line_of(job, *outcome), file=sys.stdout)
        self.bar.update()

    def collect(self, job: Job, future: Future[Outcome]) -> None:
        """Add the outcome of a job's future, or its error."""
        try:
            with uninterrupted():
                outcome = future.result()
        except (FileError, UpscaleError) as error:
            self.fail(str(error) if str(job.path) in str(error) else f"'{job.path}': {error}")
        else:
            self.add(job, outcome)


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


def await_all(count: int, finished: SimpleQueue[Future[Outcome]], seconds: float) -> None:
    """Wait until ``count`` jobs have finished, but not longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    with suppress(Empty):
        for _ in range(count):
            finished.get(timeout=max(0.0, deadline - time.monotonic()))


def upscale_all(items: Iterator[Job | FileError], args: argparse.Namespace, bar: tqdm[Any]) -> Tally:
    """Execute all jobs concurrently and report each result.

    Raises:
        UpscaleError: there is no server, or it rejects the options.
    """
    tally = Tally(bar)
    server_gone = threading.Event()
    running: dict[Future[Outcome], Job] = {}
    finished: SimpleQueue[Future[Outcome]] = SimpleQueue()

    def work(client: Client, job: Job) -> Outcome:
        if server_gone.is_set():
            raise ServerLost("not sent: the server is gone")
        try:
            return upscale_file(client, reader, job, args)
        except (NotAllowed, ServerLost):  # no other image would fare better
            server_gone.set()
            raise

    def submit(client: Client, job: Job) -> None:
        with uninterrupted():
            future = pool.submit(work, client, job)
            running[future] = job
            future.add_done_callback(finished.put)

    def collect_one() -> None:
        future = finished.get()
        tally.collect(running.pop(future), future)

    def connect() -> Client:
        server = {name: getattr(args, name) for name in CONNECTION}
        client = stack.enter_context(Client(args.url, **server))
        client.check(args.seed, **validated(options_of, args, client.preset))
        return client

    client = None
    # reader and client must outlive the pool, whose running jobs use them
    with ExitStack() as stack:
        reader = stack.enter_context(Reader())
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            try:
                for item in items:
                    if isinstance(item, FileError):
                        tally.fail(str(item))
                    elif args.skip_existing and is_done(item, args):
                        tally.skip()
                    else:
                        client = client or connect()
                        submit(client, item)
                        while len(running) >= 2 * IN_FLIGHT or not finished.empty():
                            collect_one()
                while running:
                    collect_one()
            except (KeyboardInterrupt, OSError) as error:
                with uninterrupted():
                    pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, KeyboardInterrupt):
                    bar.write("interrupted: finishing the images in progress", file=sys.stderr)
                    await_all(len(running), finished, GRACE)
                    if client is not None:
                        client.close()
                raise
    return tally


def report(problem: str, bar: tqdm[Any]) -> None:
    bar.write(on_one_line(f"error: {problem}"), file=sys.stderr)
