"""Request options and their validation, shared by client and server."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.presets import PRESETS, Preset
from pipeline.spec import (
    DEGRADATIONS,
    DENOISERS,
    MAX_SAMPLES,
    MAX_SEED,
    MAX_SIDE,
    MAX_WORK,
    MIN_SIDE,
    OUTPUTS,
    PIXEL_MM,
    SAMPLERS,
    Output,
    SamplerName,
    Start,
)

Choice = TypeVar("Choice", bound=str)

STOPPING = "Server not ready"
"""Triton's response while it starts or stops."""

BUSY = "Exceeds maximum queue size"
"""Triton's response to a request for a model with as many waiting requests as it may have."""

MAX_SHOWN = 60
"""Maximum characters of an invalid value in a message."""


class InvalidRequest(ValueError):
    """A request is invalid; the message names the tensor, the allowed values and the value received."""

    @property
    def rule(self) -> str:
        """The message without the value received, which may be anything: for logs."""
        return str(self).split(", got ")[0]


@dataclass(frozen=True)
class Options:
    """Options for upscaling, named like the tensors; images of equal options and shape can run together."""

    steps: int
    sampler: SamplerName
    start: Start
    samples: int
    output: Output
    faithful: bool
    degradation: str
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
        degradation: str | None = None,
        denoiser: str | None = None,
    ) -> Options:
        """Return the options, with the preset's defaults for None.

        Raises:
            InvalidRequest: a value is not allowed.
        """
        diffusion = preset.diffusion
        chosen = diffusion.sampler if sampler is None else _choice("sampler", sampler, SAMPLERS)
        options = cls(
            steps=diffusion.default_steps(chosen) if steps is None else whole_number("steps", steps, 1, diffusion.T),
            sampler=chosen,
            start=diffusion.start if start is None else _choice("start", start, diffusion.starts),
            samples=1 if samples is None else whole_number("samples", samples, 1, MAX_SAMPLES),
            output="sample" if output is None else _choice("output", output, OUTPUTS),
            faithful=preset.faithful if faithful is None else _boolean("faithful", faithful),
            degradation=_choice("degradation", "auto" if degradation is None else degradation, DEGRADATIONS),
            denoiser="auto" if denoiser is None else _choice("denoiser", denoiser, DENOISERS),
        )
        if options.output == "mean" and options.samples == 1:
            raise InvalidRequest("'output' is 'mean', which needs 'samples' of 2 or more")
        return options

    def work(self, pixels: int) -> int:
        """Return the work of an image of ``pixels`` LR pixels; see ``check_work``."""
        return pixels * self.samples * self.steps


OPTIONS = tuple(field.name for field in fields(Options))


def check_for_some_preset(options_of: Callable[[Preset], dict[str, Any]]) -> None:
    """Raise InvalidRequest if no preset allows its options: which one the server runs is not always known yet."""
    errors = []
    for preset in PRESETS.values():
        try:
            Options.of(preset, **options_of(preset))
        except InvalidRequest as error:
            errors.append(error)
    if len(errors) == len(PRESETS):
        raise errors[0]


def check_work(work: int, limit: int = MAX_WORK) -> None:
    """Raise InvalidRequest if a request's LR pixels × samples × steps, over all its images, exceed ``limit``."""
    if work > limit:
        raise InvalidRequest(
            f"a request's images × pixels × samples × steps must be at most {limit:,}, got {work:,}: send fewer or "
            "smaller images, or fewer samples or steps"
        )


def is_not_serving(message: str) -> bool:
    """Whether Triton's message means that the server is starting or stopping, or the model is being loaded or unloaded.

    The status is not enough: for a model called by another one, it is the same as for any error.
    """
    return any(
        text in message
        for text in (STOPPING, "Server is stopping", "is not ready", "Request for unknown model", "Stub process", BUSY)
    )


def check_seed(seed: Any) -> int:
    """Return the seed as a Python integer; see ``whole_number``."""
    return whole_number("seed", seed, 0, MAX_SEED)


def check_pixel_mm(value: Any) -> float:
    """Return the pixel spacing, in mm, as a Python float.

    Raises:
        InvalidRequest: the spacing is not a number or out of range.
    """
    low, high = PIXEL_MM
    if not _is_number(value) or not low <= value <= high:
        raise InvalidRequest(f"'pixel_mm' must be {low:g}–{high:g} (mm between pixels), got {_abbreviated(value)}")
    return float(value)


def check_seconds(name: str, value: Any, *, zero: bool) -> float:
    """Return a time limit, which may be infinite; ``zero``: whether 0 is allowed.

    Raises:
        InvalidRequest: the limit is not a number, NaN, negative, or 0 if that is not allowed.
    """
    if not _is_number(value) or not (value >= 0 if zero else value > 0):
        allowed = "0 or more" if zero else "more than 0"
        raise InvalidRequest(f"'{name}' must be {allowed} seconds (inf: no limit), got {_abbreviated(value)}")
    return math.inf if value > sys.float_info.max else float(value)


def gray_image(value: Any, max_side: int = MAX_SIDE) -> NDArray[np.floating[Any]]:
    """Convert any NumPy array-like to an image [H, W] that passes ``check_image``.

    Raises:
        InvalidRequest: the value is not such an image.
    """
    if np.ma.is_masked(value):  # type: ignore[no-untyped-call]
        raise InvalidRequest("'image' must not have masked values: fill them, for example with .filled(0)")
    try:
        array = np.asarray(value)
    except Exception as error:  # foreign objects may raise anything
        raise InvalidRequest(f"'image' must be floating point [H, W], 0–1, got a {type(value).__name__}") from error
    if not np.issubdtype(array.dtype, np.floating):
        what = str(array.dtype) if array.dtype.kind in "biuc" else f"a {type(value).__name__} without numbers"
        hint = f": divide by {np.iinfo(array.dtype).max}" if array.dtype in (np.uint8, np.uint16) else ""
        raise InvalidRequest(f"'image' must be floating point, 0–1, got {what}{hint}")
    if array.ndim != 2:
        raise InvalidRequest(f"'image' must be one gray image [H, W], got shape {array.shape}")
    check_image(array, max_side)
    return array


def check_image(image: NDArray[Any], max_side: int = MAX_SIDE) -> None:
    """Raise InvalidRequest if the last two axes are too short or long, or values are outside [0, 1]."""
    height, width = image.shape[-2:]
    if not (MIN_SIDE <= height <= max_side and MIN_SIDE <= width <= max_side):
        raise InvalidRequest(f"'image' must be {MIN_SIDE}–{max_side} pixels per side, got {height}×{width}")
    if not np.isfinite(image).all():
        raise InvalidRequest("'image' must be 0–1, got NaN or infinite values")
    if image.min() < 0 or image.max() > 1:
        raise InvalidRequest(f"'image' must be 0–1, got values from {image.min():g} to {image.max():g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Return a value as a Python integer.

    Raises:
        InvalidRequest: it is not an integer or out of range; the message names it ``name``.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(f"'{name}' must be {low}–{high}, got {_abbreviated(value)}")
    return int(value)


def _choice(name: str, value: Any, allowed: tuple[Choice, ...]) -> Choice:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidRequest(f"'{name}' must be one of {', '.join(allowed)}, got {_abbreviated(value)}")
    return next(choice for choice in allowed if choice == value)  # not a subclass of str


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidRequest(f"'{name}' must be true or false, got {_abbreviated(value)}")
    return bool(value)


def _abbreviated(value: Any) -> str:
    """Return a value's representation, shortened and on one line."""
    text = " ".join((str(value) if isinstance(value, np.number) else repr(value)).split())
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
