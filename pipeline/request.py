"""What a request may hold, checked alike by the client before sending and by the server on arrival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.spec import (
    DENOISERS,
    MAX_SAMPLES,
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    OUTPUTS,
    SAMPLERS,
    Output,
    Preset,
    SamplerName,
    Start,
)


class BadRequest(ValueError):
    """The message names the tensor, the value received and the values allowed."""


@dataclass(frozen=True)
class Options:
    """How an image is upscaled; images with equal options and shape can run together. The names are the tensors'."""

    steps: int
    sampler: SamplerName
    start: Start
    samples: int
    output: Output
    faithful: bool
    denoiser: str

    @classmethod
    def of(
        cls,
        preset: Preset,
        steps: int | None = None,
        sampler: str | None = None,
        start: str | None = None,
        samples: int | None = None,
        output: str | None = None,
        faithful: bool | None = None,
        denoiser: str | None = None,
    ) -> Options:
        """The options with the preset's defaults for what is None.

        Raises:
            BadRequest: a value is not allowed.
        """
        diffusion = preset.diffusion
        chosen = diffusion.sampler if sampler is None else cast(SamplerName, sampler)
        options = cls(
            steps=diffusion.default_steps(chosen) if steps is None else steps,
            sampler=chosen,
            start=diffusion.start if start is None else cast(Start, start),
            samples=1 if samples is None else samples,
            output="sample" if output is None else cast(Output, output),
            faithful=preset.faithful if faithful is None else faithful,
            denoiser="auto" if denoiser is None else denoiser,
        )
        _check_number("steps", options.steps, 1, diffusion.T)
        _check_choice("sampler", options.sampler, SAMPLERS)
        _check_choice("start", options.start, diffusion.starts)
        _check_number("samples", options.samples, 1, MAX_SAMPLES)
        _check_choice("output", options.output, OUTPUTS)
        if not isinstance(options.faithful, bool):
            raise BadRequest(f"'faithful' is {options.faithful!r}, allowed are true and false")
        if options.output == "mean" and options.samples == 1:
            raise BadRequest("'output' is 'mean', which needs 'samples' of 2 or more")
        _check_choice("denoiser", options.denoiser, DENOISERS)
        return options


def check_seed(seed: int) -> None:
    """Raises BadRequest where the seed is out of range."""
    _check_number("seed", seed, 0, MAX_SEED)


def check_image(image: NDArray[Any]) -> None:
    """Raises BadRequest where the last two axes are too short or too long, or values are not in [0, 1]."""
    height, width = image.shape[-2:]
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise BadRequest(f"'image' is {height}×{width} pixels, allowed are {MIN_SIDE} to {MAX_SIDE} a side")
    if not np.isfinite(image).all():
        raise BadRequest("'image' has NaN or infinite values, allowed are 0 to 1")
    if image.min() < 0 or image.max() > 1:
        raise BadRequest(f"'image' has values from {image.min():g} to {image.max():g}, allowed are 0 to 1")


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise BadRequest(f"'{name}' is {value}, allowed are {low} to {high}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadRequest(f"'{name}' is '{value}', allowed are {', '.join(allowed)}")
