"""Triton model ``superres``: decodes requests, runs them together through the networks, and answers each.

The method is in ``pipeline.method.upscale``; its networks are this server's models in ``pipeline.models.onnx_models``,
or their TensorRT plans, called by BLS. The preset is a parameter in ``config.pbtxt``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline.backends.batches import required_input
from pipeline.backends.failures import Cancelled, Failures, Unavailable
from pipeline.backends.results import Audit, Cache, Metrics, request_key
from pipeline.method.options import (
    STOPPING,
    InvalidRequest,
    Options,
    check_image,
    check_pixel_mm,
    check_seed,
    check_work,
    is_not_serving,
)
from pipeline.method.upscale import Array, Call, Networks, Result, generator, networks_of, upscale
from pipeline.models import onnx_models, plan_models
from pipeline.presets import PRESETS, Preset
from pipeline.serving.drain import Closed, working
from pipeline.spec import (
    AUDIT_VARIABLE,
    CACHE_VARIABLE,
    CALLER,
    INSTANCES,
    MAX_WORK,
    MAX_WORK_VARIABLE,
    MODEL_VARIABLE,
    OTHER,
    PROBE_VARIABLE,
    RESTARTS_VARIABLE,
    UNKNOWN,
    Model,
)

OPTIONS = ("steps", "sampler", "start", "samples", "output", "faithful", "degradation", "denoiser")


@dataclass(frozen=True)
class Job:
    """Image ``row`` of request ``request`` in a batch."""

    request: int
    row: int
    image: Array
    seed: int
    pixel_mm: float | None
    options: Options
    kept: bool
    """Whether the result is counted, recorded and cached: not that of the supervisor's test image."""


def values(request: Any, name: str, count: int) -> list[Any]:
    """Return the values of an optional [B, 1] tensor, one per image, as Python objects; None if it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return [None] * count
    return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in tensor.as_numpy().reshape(-1).tolist()]


server_stopping = Event()
"""Set once Triton reports that it is stopping. Asking it for a model's readiness would then crash Triton 2.51."""

READINESS_LIFETIME = 1.0
"""Seconds for which a model's readiness is cached: a query takes 0.1 ms."""
INTERRUPT_EVERY = 0.2
"""Minimum seconds between two looks at whether work is still wanted: each takes 0.1 ms per request."""
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
    """Return a network that first calls ``interrupt``, which raises an error to end the work, unless it just has."""
    last = time.monotonic()

    def run(**inputs: Array) -> tuple[Array, ...]:
        nonlocal last
        if (now := time.monotonic()) - last > INTERRUPT_EVERY:
            interrupt()
            last = now
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


def check_wanted(callers: Sequence[Any], must_stop: Callable[[], bool]) -> None:
    """Raise Unavailable if the server stops now, and Cancelled if no caller waits for the answer any more."""
    if must_stop():
        raise Unavailable(STOPPING)
    if all(caller.is_cancelled() for caller in callers):
        raise Cancelled("cancelled by the caller")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.preset = PRESETS[json.loads(args["model_config"])["parameters"]["preset"]["string_value"]]
        environment = os.environ.get
        # without a supervisor, every request counts
        self.probe = environment(PROBE_VARIABLE)
        self.metrics = Metrics(environment(RESTARTS_VARIABLE, ""))
        megabytes = float(environment(CACHE_VARIABLE, 0))
        self.cache = Cache(int(megabytes * 1e6 / INSTANCES)) if megabytes else None
        audit = environment(AUDIT_VARIABLE)
        self.audit = Audit(Path(audit), environment(MODEL_VARIABLE, "")) if audit else None
        self.max_work = int(os.environ.get(MAX_WORK_VARIABLE, MAX_WORK))
        self.failures = Failures(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Upscale all images, together if shape and options agree; an error only affects its own requests."""
        try:
            with working() as must_stop:
                return self._execute(requests, must_stop)
        except Closed:
            return [self.failures.answer(Unavailable(STOPPING), request, STOPPING) for request in requests]

    def _execute(self, requests: list[Any], must_stop: Callable[[], bool]) -> list[Any]:
        errors: dict[int, Exception] = {}
        groups: dict[Any, list[Job]] = defaultdict(list)
        for index, request in enumerate(requests):
            try:
                for job in self._decode(index, request):
                    groups[job.image.shape, job.options].append(job)
            except Exception as error:  # an invalid request must not affect the batch
                errors[index] = error
        results: dict[int, dict[int, Result]] = defaultdict(dict)
        for (_, options), jobs in groups.items():
            callers = [requests[index] for index in {job.request for job in jobs}]
            try:
                found = self._results(jobs, options, partial(check_wanted, callers, must_stop))
                if self.audit:
                    for job, result in zip(jobs, found, strict=True):
                        if job.kept:
                            self._record(self.audit, requests[job.request], job, result)
            except Exception as error:  # a failure only affects these requests
                errors.update({job.request: error for job in jobs})
            else:
                for job, result in zip(jobs, found, strict=True):
                    results[job.request][job.row] = result
        return [self._respond(request, errors.get(i), results[i]) for i, request in enumerate(requests)]

    def _results(self, jobs: list[Job], options: Options, interrupt: Callable[[], None]) -> list[Result]:
        """Return the results of jobs of one shape with the same options, from the cache where it has them."""
        found: dict[int, Result] = {}
        keys = {}
        if self.cache:
            keys = {
                i: request_key(job.image, job.seed, options, job.pixel_mm) for i, job in enumerate(jobs) if job.kept
            }
            found = {i: result for i, key in keys.items() if (result := self.cache.get(key)) is not None}
        hits, missing = len(found), [i for i in range(len(jobs)) if i not in found]
        if missing:
            made = self._upscale([jobs[i] for i in missing], options, interrupt)
            found |= zip(missing, made, strict=True)
        for i in missing:
            if self.cache and i in keys:
                self.cache.put(keys[i], found[i])
        self.metrics.count([found[i] for i, job in enumerate(jobs) if job.kept], hits)
        return [found[i] for i in range(len(jobs))]

    def _record(self, audit: Audit, request: Any, job: Job, result: Result) -> None:
        caller = json.loads(request.parameters() or "{}").get(CALLER, "")
        audit.write(request.request_id(), str(caller), job.image, job.seed, job.options, result)

    def _upscale(self, jobs: list[Job], options: Options, interrupt: Callable[[], None]) -> list[Result]:
        """Upscale jobs of one shape with the same options."""
        return upscale(
            [job.image for job in jobs],
            [job.seed for job in jobs],
            generator(networks(self.preset, options.denoiser, interrupt), self.preset, options),
            self.preset,
            options,
            pixel_mm=[job.pixel_mm for job in jobs],
        )

    def _decode(self, index: int, request: Any) -> list[Job]:
        images = required_input(request, "image").as_numpy()
        check_image(images)
        seeds, sizes, *options = (values(request, n, len(images)) for n in ("seed", "pixel_mm", *OPTIONS))
        jobs, kept = [], request.request_id() != self.probe
        for row, (image, seed, mm, *chosen) in enumerate(zip(images, seeds, sizes, *options, strict=True)):
            check_seed(seed or 0)
            pixel_mm = None if mm is None else check_pixel_mm(mm)
            jobs.append(Job(index, row, image, seed or 0, pixel_mm, Options.of(self.preset, *chosen), kept))
        check_work(sum(job.options.work(job.image.size) for job in jobs), self.max_work)
        plan = plan_models(self.preset).denoiser
        if any(job.options.denoiser == "trt" for job in jobs) and not is_ready(plan):
            raise InvalidRequest(
                f"'denoiser' is 'trt', but the server runs no TensorRT plan '{plan.name}': build it on the server's "
                "GPU with `make plan` and start the server again; if it is built, see the server's log"
            )
        return jobs

    def _respond(self, request: Any, error: Exception | None, results: dict[int, Result]) -> Any:
        if error is not None:
            return self.failures.answer(error, request, str(error))
        rows = [results[row] for row in sorted(results)]
        # made on request only: a spread is as large as the image
        outputs: dict[str, Callable[[], list[Any]]] = {
            "upscaled": lambda: [r.upscaled for r in rows],
            "spread": lambda: [np.full_like(r.upscaled, UNKNOWN) if r.spread is None else r.spread for r in rows],
            "lr_error": lambda: [[r.lr_error] for r in rows],
            "found": lambda: [[r.history.reduction or OTHER] for r in rows],
            "noise": lambda: [[r.history.noise] for r in rows],
            "expected_error": lambda: [[UNKNOWN if r.expected_error is None else r.expected_error] for r in rows],
            "model": lambda: [[os.environ.get(MODEL_VARIABLE, "")] for _ in rows],
        }
        wanted = request.requested_output_names()
        tensors = [
            pb_utils.Tensor(name, np.array(make(), np.object_ if name in ("found", "model") else np.float32))
            for name, make in outputs.items()
            if name in wanted
        ]
        return pb_utils.InferenceResponse(tensors)
