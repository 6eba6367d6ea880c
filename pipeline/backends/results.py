"""What ``superres`` keeps of its results: a cache, metrics, and an audit record."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline.backends.failures import Unavailable
from pipeline.backends.jobs import Job
from pipeline.method.images import Image
from pipeline.method.options import Options
from pipeline.method.upscale import Result
from pipeline.spec import AUDIT_VARIABLE, CALLER, MODEL_VARIABLE, RESTARTS_VARIABLE

LR_ERROR_BOUNDS = (1, 4, 16)
"""Upper bounds of the histogram of ``lr_error``, in gray levels of 255."""


def image_hash(image: Image) -> str:
    """Return the SHA-256 of an image's size and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def request_key(image: Image, seed: int, options: Options, pixel_mm: float | None) -> str:
    """Return what a result depends on, as text."""
    return f"{image_hash(image)} {seed} {options} {pixel_mm}"


class Cache:
    """Results of the latest requests, up to a number of bytes.

    Triton's own cache does not look at which outputs a request wants: a request for more of them than an earlier one
    would get an answer without them.
    """

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self.results: OrderedDict[str, Result] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: str) -> Result | None:
        with self.lock:
            if key in self.results:
                self.results.move_to_end(key)
            return self.results.get(key)

    def put(self, key: str, result: Result) -> None:
        """Keep a result, and forget the longest unused ones."""
        with self.lock:
            if key in self.results or bytes_of(result) > self.size:
                return
            self.results[key] = result
            self.used += bytes_of(result)
            while self.used > self.size:
                _, oldest = self.results.popitem(last=False)
                self.used -= bytes_of(oldest)


def bytes_of(result: Result) -> int:
    return result.upscaled.nbytes + (0 if result.spread is None else result.spread.nbytes)


class Metrics:
    """Prometheus metrics on Triton's metrics port; none before 23.05 or in servers started without metrics."""

    def __init__(self) -> None:
        self.images: Any = None
        self.buckets: dict[str, Any] = {}
        with contextlib.suppress(AttributeError, pb_utils.TritonModelException):
            self._create()

    def _create(self) -> None:
        def family(name: str, description: str) -> Any:
            return pb_utils.MetricFamily(
                name=f"cxr_superres_{name}", description=description, kind=pb_utils.MetricFamily.COUNTER
            )

        # families must outlive their metrics
        self.families = [
            family("images_total", "Number of images that were upscaled"),
            family("cache_hits_total", "Number of images whose result was known from an earlier request"),
            family("lr_error_bucket", "Number of images with an lr_error of up to le gray levels"),
            family("lr_error_sum", "Sum of the lr_error of all images, in gray levels"),
            family("restarts_total", "Number of times that the supervisor restarted the server, by reason"),
        ]
        images, hits, buckets, total, again = self.families
        self.images, self.hits, self.sum = images.Metric(), hits.Metric(), total.Metric()
        self.buckets = {str(bound): buckets.Metric(labels={"le": str(bound)}) for bound in (*LR_ERROR_BOUNDS, "+Inf")}
        for reason, count in (word.split("=") for word in os.environ.get(RESTARTS_VARIABLE, "").split()):
            metric = again.Metric(labels={"reason": reason})
            if metric.value() == 0:  # the other instance may have counted them
                metric.increment(int(count))

    def count(self, lr_errors: Sequence[float], hits: int) -> None:
        """Count images by their ``lr_error``, and how many of their results were in the cache."""
        if self.images is None:
            return
        levels = [255 * error for error in lr_errors]
        counts = {self.images: len(levels), self.hits: hits, self.sum: sum(levels)}
        for bound, metric in self.buckets.items():
            counts[metric] = sum(level <= float(bound) for level in levels)
        for metric, count in counts.items():
            if count:  # each takes 0.02 ms
                metric.increment(count)


class Audit:
    """A file of one JSON line per result, appended by both instances; it holds no pixels and no file names.

    A result whose record cannot be written is withheld: otherwise the file would lack some, and nobody could tell.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, os.environ.get(MODEL_VARIABLE, "")
        self.failing = False

    @classmethod
    def of_server(cls) -> Audit | None:
        """Return the record that this process's environment asks for, if it does."""
        path = os.environ.get(AUDIT_VARIABLE)
        return cls(Path(path)) if path else None

    def write(self, request: Any, job: Job, output_sha256: str) -> None:
        """Append the record of a request's result.

        Raises:
            Unavailable: it cannot be written, as when the disk is full.
        """
        record = {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
            "request": request.request_id(),
            "caller": str(json.loads(request.parameters() or "{}").get(CALLER, "")),
            "model": self.model,
            "input_sha256": image_hash(job.image),
            "output_sha256": output_sha256,
            "seed": job.seed,
            **asdict(job.options),
        }
        try:
            append(self.path, (json.dumps(record) + "\n").encode())
        except OSError as error:
            if not self.failing:
                pb_utils.Logger.log_error(
                    f"'{self.path}' cannot be written ({error.strerror}): results are withheld until it can"
                )
            self.failing = True
            raise Unavailable(f"the audit record cannot be written ({error.strerror})") from error
        if self.failing:
            pb_utils.Logger.log_info(f"'{self.path}' can be written again")
        self.failing = False


def append(path: Path, line: bytes) -> None:
    """Append a whole line to a file that other processes append to, or nothing; raise OSError."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if os.write(file, line) < len(line):  # the last free bytes of a disk
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)
