"""Triton model ``superres_stream``: ``superres`` for one image per request, which tells its progress as it works.

A request gets several responses: progress with ``step`` of ``steps`` and, if ``previews`` are wanted, the image as it
is expected to become; then the result, equal to that of ``superres`` to the bit. Images with a side above its limit are
upscaled in tiles (``pipeline.method.tiles``), each of which is a response with its position in the result.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline.backends.calls import check_wanted, networks
from pipeline.backends.failures import Failures, Unavailable
from pipeline.backends.jobs import Job, Limits, decode, output_tensors, values
from pipeline.backends.results import Audit, Metrics, image_hash
from pipeline.method.options import STOPPING, whole_number
from pipeline.method.tiles import Tile, upscale_tiles, windows
from pipeline.method.upscale import Array, crop, generator, images_per_call, upscale
from pipeline.presets import PRESETS
from pipeline.serving.drain import Closed, working
from pipeline.spec import MAX_SIDE

EVENT_EVERY = 0.1
"""Minimum seconds between two responses with progress alone."""


class Reporter:
    """Sends the progress of a request."""

    def __init__(self, request: Any, steps: int, previews: int) -> None:
        self.sender, self.wanted = request.get_response_sender(), request.requested_output_names()
        self.step, self.steps, self.previews = 0, steps, previews
        self.reported = time.monotonic()

    def advance(self, count: int, preview: Callable[[], Array] | None = None) -> None:
        """Count steps, and report them unless it has just been done or a preview is due."""
        before, self.step = self.step, self.step + count
        self.steps = max(self.steps, self.step)  # a rotated image takes its steps again
        due = preview and any(
            before < k * self.steps // (self.previews + 1) <= self.step for k in range(1, self.previews + 1)
        )
        if due or time.monotonic() - self.reported > EVENT_EVERY:
            self.send({"preview": preview()} if due and preview else {})

    def send(self, arrays: dict[str, Any], tensors: tuple[Any, ...] = (), flags: int = 0) -> None:
        """Send a response with the progress and further outputs."""
        self.reported = time.monotonic()
        counts = {"step": [[self.step]], "steps": [[self.steps]]}
        arrays = {name: np.array(value, np.int32) for name, value in counts.items()} | arrays
        made = [pb_utils.Tensor(name, array) for name, array in arrays.items() if name in self.wanted]
        self.sender.send(pb_utils.InferenceResponse([*made, *tensors]), flags=flags)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.preset = PRESETS[json.loads(args["model_config"])["parameters"]["preset"]["string_value"]]
        self.metrics, self.audit = Metrics(), Audit.of_server()
        self.limits = Limits.of_server(self.preset.max_side)
        self.failures = Failures(args["model_name"])

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                with working() as must_stop:
                    self._answer(request, partial(check_wanted, [sender.is_cancelled], must_stop))
            except Exception as error:
                error = Unavailable(STOPPING) if isinstance(error, Closed) else error
                answer = self.failures.answer(error, request, str(error))
                sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answer(self, request: Any, interrupt: Callable[[], None]) -> None:
        """Send all responses to a request; a finished tile waits for the next one, as the last is marked."""
        [job] = decode(request, 0, self.preset, self.limits)
        previews = whole_number("previews", values(request, "previews", 1)[0] or 0, 0, self.preset.diffusion.T)
        large = max(job.image.shape) > MAX_SIDE
        size = 1 if large else images_per_call(job.image.size)
        tiles = len(windows(*job.image.shape)) if large else 0
        reporter = Reporter(request, job.options.steps * -(-job.options.samples // size) + tiles, previews)
        made = self._tiles(job, reporter, interrupt) if large else self._whole(job, reporter, interrupt)
        lr_error, digest = 0.0, hashlib.sha256()
        waiting: Tile | None = None
        for one in made:
            if waiting:
                self._send(request, reporter, waiting)
            waiting = one
            lr_error = max(lr_error, one.result.lr_error)
            if self.audit and large:
                digest.update(one.result.upscaled.tobytes())
        assert waiting is not None
        if self.audit and job.kept:
            whole = image_hash(waiting.result.upscaled) if not large else digest.hexdigest()
            self.audit.write(request, job, whole)
        if job.kept:
            self.metrics.count([lr_error], 0)
        reporter.step = reporter.steps
        self._send(request, reporter, waiting, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _whole(self, job: Job, reporter: Reporter, interrupt: Callable[[], None]) -> Iterator[Tile]:
        def progress(count: int, preview: Callable[[], Array]) -> None:
            reporter.advance(count, lambda: crop(preview()[:1], job.image))

        draw = generator(networks(self.preset, job.options.denoiser, interrupt), self.preset, job.options, progress)
        [result] = upscale([job.image], [job.seed], draw, self.preset, job.options, pixel_mm=[job.pixel_mm])
        yield Tile(0, 0, result)

    def _tiles(self, job: Job, reporter: Reporter, interrupt: Callable[[], None]) -> Iterator[Tile]:
        called = networks(self.preset, job.options.denoiser, interrupt)
        for tile in upscale_tiles(
            *(job.image, job.seed, called, self.preset, job.options, job.pixel_mm), reporter.advance
        ):
            reporter.step += 1
            yield tile

    def _send(self, request: Any, reporter: Reporter, tile: Tile, flags: int = 0) -> None:
        place = {"top": np.array([[tile.top]], np.int32), "left": np.array([[tile.left]], np.int32)}
        reporter.send(place, tuple(output_tensors([tile.result], request.requested_output_names())), flags)
