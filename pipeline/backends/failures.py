"""Handle failed requests in Python models: error response, log line, failure counter.

Triton's metrics port exposes the counter as
``cxr_superres_failures_total{model=…, reason="bad_request" | "unavailable" | "cancelled" | "internal"}``. No pixels or
other contents of a request are logged, and the lines of each reason are limited.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline.backends.log_limit import LogLimit
from pipeline.method.options import InvalidRequest

METRIC = "cxr_superres_failures_total"
REASONS = ("bad_request", "unavailable", "cancelled", "internal")
SHOWN = 64
"""Maximum characters of a request's ID in the log, which its caller chooses."""


class Unavailable(Exception):
    """A called model is currently unavailable: it is being unloaded, or the server is stopping."""


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class Failures:
    """Failure handling of one model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.counters: dict[str, Any] = {}
        self.limits = {reason: LogLimit() for reason in REASONS}
        # not available before 23.05 or in servers started without metrics
        with contextlib.suppress(AttributeError, pb_utils.TritonModelException):
            self.family = pb_utils.MetricFamily(
                name=METRIC,
                description="Number of requests that a Python model answered with an error",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            self.counters = {r: self.family.Metric(labels={"model": model, "reason": r}) for r in REASONS}

    def answer(self, error: Exception, request: Any, text: str) -> Any:
        """Return the error response to a request that failed with ``error``; its message is ``text``."""
        log = pb_utils.Logger.log_info
        if isinstance(error, InvalidRequest):
            reason, code = "bad_request", pb_utils.TritonError.INVALID_ARG
            line = f"is not allowed: {error.rule}"
        elif isinstance(error, Unavailable):
            reason, code = "unavailable", pb_utils.TritonError.UNAVAILABLE
            line = f"cannot be served now: {text}"
        elif isinstance(error, Cancelled):
            reason, code = "cancelled", pb_utils.TritonError.CANCELLED
            line = "was cancelled by its caller"
        else:
            reason, code = "internal", pb_utils.TritonError.INTERNAL
            line, log = f"failed:\n{''.join(traceback.format_exception(error))}", pb_utils.Logger.log_error
        note = self.limits[reason].admit(time.monotonic())
        if note is not None:
            log(f"{self.model}: request '{request.request_id()[:SHOWN]}' {line}{note}")
        if reason in self.counters:
            self.counters[reason].increment(1)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
