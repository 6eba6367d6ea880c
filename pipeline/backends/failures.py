"""Handle failed requests in Python models: error response, log line, failure counter.

Triton's metrics port exposes the counter as
``cxr_superres_failures_total{model=…, reason="bad_request" | "unavailable" | "cancelled" | "internal"}``. No pixels or
other contents of a request are logged.
"""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline.method.options import InvalidRequest

METRIC = "cxr_superres_failures_total"
REASONS = ("bad_request", "unavailable", "cancelled", "internal")


class Unavailable(Exception):
    """A called model is currently unavailable: it is being unloaded, or the server is stopping."""


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class Failures:
    """Failure handling of one model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.counters: dict[str, Any] = {}
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
        about = f"{self.model}: request '{request.request_id()}'"
        if isinstance(error, InvalidRequest):
            reason, code = "bad_request", pb_utils.TritonError.INVALID_ARG
            pb_utils.Logger.log_verbose(f"{about} is not allowed")
        elif isinstance(error, Unavailable):
            reason, code = "unavailable", pb_utils.TritonError.UNAVAILABLE
            pb_utils.Logger.log_info(f"{about} cannot be served now: {text}")
        elif isinstance(error, Cancelled):
            reason, code = "cancelled", pb_utils.TritonError.CANCELLED
            pb_utils.Logger.log_info(f"{about} was cancelled by its caller")
        else:
            reason, code = "internal", pb_utils.TritonError.INTERNAL
            pb_utils.Logger.log_error(f"{about} failed:\n{''.join(traceback.format_exception(error))}")
        if reason in self.counters:
            self.counters[reason].increment(1)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
