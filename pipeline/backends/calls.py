"""Calls of the server's models by the models that run the method, by BLS."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline.backends.failures import Cancelled, Unavailable
from pipeline.backends.reported import is_reported
from pipeline.method.options import STOPPING, is_not_serving
from pipeline.method.upscale import Array, Call, Networks, networks_of
from pipeline.models import onnx_models, plan_models
from pipeline.presets import Preset
from pipeline.spec import REQUEST, Model

server_stopping = Event()
"""Set once Triton reports that it is stopping. Asking it for a model's readiness would then crash Triton 2.51."""

READINESS_LIFETIME = 1.0
"""Seconds for which a model's readiness is cached: a query takes 0.1 ms."""
readiness: dict[str, tuple[float, bool]] = {}
"""Model ⇒ (time of the last query, its result)."""


def is_ready(model: Model) -> bool:
    """Whether this server runs the model, at most ``READINESS_LIFETIME`` seconds ago.

    Raises:
        Unavailable: the server is stopping.
    """
    if server_stopping.is_set():
        raise Unavailable(STOPPING)
    now = time.monotonic()
    asked, found = readiness.get(model.name, (-math.inf, False))
    if now - asked < READINESS_LIFETIME:
        return found
    try:
        found = pb_utils.is_model_ready(model_name=model.name)
    except pb_utils.TritonModelException as error:
        server_stopping.set()
        raise Unavailable(str(error)) from error
    readiness[model.name] = now, found
    return found


def call(model: Model, **inputs: Array) -> tuple[Array, ...]:
    """Run a model of this server and return its outputs in CPU memory.

    Args:
        model: model to run; unknown inputs are ignored.
        inputs: inputs by name.

    Raises:
        Unavailable: the model is being unloaded, or the server is stopping.
        TritonModelException: the model failed.
    """
    outputs = [tensor.name for tensor in model.outputs]
    response = pb_utils.InferenceRequest(
        model_name=model.name,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(tensor, inputs[tensor]) for tensor in model.input_names],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    ).exec()
    if response.has_error():
        message = f"{model.name}: {response.error().message()}"
        if STOPPING in message:
            server_stopping.set()
        # for Triton, this is an internal error
        raise Unavailable(message) if is_not_serving(message) else pb_utils.TritonModelException(message)
    return tuple(pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs)


def interruptible(network: Call, interrupt: Callable[[], None]) -> Call:
    """Return a network that calls ``interrupt``, which raises an error to end the work, before all calls but the first.

    It takes 0.1 ms per request, which an image of one step is spared.
    """
    begun = False

    def run(**inputs: Array) -> tuple[Array, ...]:
        nonlocal begun
        if begun:
            interrupt()
        begun = True
        return network(**inputs)

    return run


def networks(preset: Preset, denoiser: str, interrupt: Callable[[], None]) -> Networks:
    """Return the networks as models of this server: available plans unless ``denoiser`` is "onnx", else ONNX models.

    Prefer a U-Net plan to a fused ONNX model. ``interrupt`` is called between calls, see ``interruptible``.
    """
    models, plans = onnx_models(preset), plan_models(preset)
    calls = {
        network.name: partial(call, plan if denoiser != "onnx" and is_ready(plan) else network)
        for network, plan in zip(models, plans, strict=True)
    }
    if calls[models.denoiser.name].args[0] is plans.denoiser and calls[models.fused.name].args[0] is not plans.fused:
        del calls[models.fused.name]
    return networks_of(models, {name: interruptible(network, interrupt) for name, network in calls.items()})


def is_gone(request: Any, began: float) -> bool:
    """Whether a request was cancelled, or its timeout has passed since ``began``, by ``time.monotonic``.

    Triton does not notice that a caller over HTTP is gone, but knows the timeout that the caller stated, and the
    request's ID by which the proxy reports it.
    """
    if request.is_cancelled() or 0 < request.timeout() < 1e6 * (time.monotonic() - began):
        return True
    return is_reported(str(json.loads(request.parameters() or "{}").get(REQUEST, "")))


def check_wanted(are_gone: Sequence[Callable[[], bool]], must_stop: Callable[[], bool]) -> None:
    """Raise Unavailable if the server stops now, and Cancelled if all callers are gone."""
    if must_stop():
        raise Unavailable(STOPPING)
    if all(gone() for gone in are_gone):
        raise Cancelled("cancelled by the caller")
