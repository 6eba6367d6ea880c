"""Requests for the models that run the method: what they ask for, and the tensors that answer them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from pipeline.backends.batches import required_input
from pipeline.backends.calls import is_ready
from pipeline.method.options import (
    OPTIONS,
    InvalidRequest,
    Options,
    check_image,
    check_pixel_mm,
    check_seed,
    check_work,
)
from pipeline.method.upscale import Array, Result
from pipeline.models import plan_models
from pipeline.presets import Preset
from pipeline.spec import MAX_WORK, MAX_WORK_VARIABLE, MODEL_VARIABLE, OTHER, PROBE_VARIABLE, UNKNOWN


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


@dataclass(frozen=True)
class Limits:
    """What a server allows, and how it recognises its supervisor."""

    side: int
    """Maximum pixels per side."""
    work: int
    probe: str | None
    """ID of the supervisor's requests; None without a supervisor: every request counts."""

    @classmethod
    def of_server(cls, side: int) -> Limits:
        """Return the limits that this process's environment states."""
        return cls(side, int(os.environ.get(MAX_WORK_VARIABLE, MAX_WORK)), os.environ.get(PROBE_VARIABLE))


def values(request: Any, name: str, count: int) -> list[Any]:
    """Return the values of an optional [B, 1] tensor, one per image, as Python objects; None if it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return [None] * count
    return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in tensor.as_numpy().reshape(-1).tolist()]


def decode(request: Any, index: int, preset: Preset, limits: Limits) -> list[Job]:
    """Return the jobs of request ``index`` of a batch.

    Raises:
        InvalidRequest: a tensor is not allowed, or the request is too much work.
        Unavailable: the server is stopping.
    """
    images = required_input(request, "image").as_numpy()
    check_image(images, limits.side)
    seeds, sizes, *options = (values(request, n, len(images)) for n in ("seed", "pixel_mm", *OPTIONS))
    jobs, kept = [], request.request_id() != limits.probe
    for row, (image, seed, mm, *chosen) in enumerate(zip(images, seeds, sizes, *options, strict=True)):
        check_seed(seed or 0)
        pixel_mm = None if mm is None else check_pixel_mm(mm)
        jobs.append(Job(index, row, image, seed or 0, pixel_mm, Options.of(preset, *chosen), kept))
    check_work(sum(job.options.work(job.image.size) for job in jobs), limits.work)
    plan = plan_models(preset).denoiser
    if any(job.options.denoiser == "trt" for job in jobs) and not is_ready(plan):
        raise InvalidRequest(
            f"'denoiser' is 'trt', but the server runs no TensorRT plan '{plan.name}': build it on the server's "
            "GPU with `make plan` and start the server again; if it is built, see the server's log"
        )
    return jobs


def output_tensors(rows: Sequence[Result], wanted: Sequence[str]) -> list[Any]:
    """Return the ``wanted`` outputs of the results of a request's images."""
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
    return [
        pb_utils.Tensor(name, np.array(make(), np.object_ if name in ("found", "model") else np.float32))
        for name, make in outputs.items()
        if name in wanted
    ]
