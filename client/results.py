"""Requests to the server and their results, as arrays of one image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import wire
from pipeline.method.images import Image
from pipeline.method.options import Options
from pipeline.presets import PRESETS, Preset
from pipeline.spec import NOISY, OTHER, SCALE, UNKNOWN


@dataclass(frozen=True)
class Upscaled:
    """An upscaled image, its error estimates and the options that produced it."""

    image: Image
    """float32 [4H, 4W] in [0, 1]."""
    spread: Image | None
    """float32 [4H, 4W], half-width of the band around the result that contains 90 % of true pixels; None if not
    available: for a single sample, unless the preset's networks estimate it."""
    lr_error: float
    """Maximum difference, in [0, 1], between the LR image and the result reduced in the same way."""
    degradation: str
    """Stated or estimated reduction of the image: one of ``pipeline.spec.REDUCTIONS``, or "other"."""
    noise: float
    """Estimated standard deviation of noise and compression in the image, in [0, 1]."""
    expected_error: float | None
    """Expected mean absolute error, in [0, 1]; None if not available."""
    pixel_mm: float | None
    """Stated pixel spacing of the image, in mm."""
    preset: str
    model: str
    """Hash of the server's model files (``pipeline.hashes``); "" if unknown."""
    seed: int
    options: Options
    seconds: float
    """Seconds from sending the request to receiving the answer."""

    def parameters(self) -> str:
        """Return preset, options, estimates and model as text, such as "preset=best seed=0 steps=…"."""
        return " ".join(
            [f"preset={self.preset} seed={self.seed}"]
            + [f"{name}={value}" for name, value in asdict(self.options).items()]
            + [f"found={self.degradation} noise={255 * self.noise:.2f}"]
            + ([] if self.pixel_mm is None else [f"pixel_mm={self.pixel_mm:.4g}"])
            + ([f"model={self.model}"] if self.model else [])
        )

    def notes(self) -> list[str]:
        """Return readable notes on anything unusual about the image."""
        preset, found = PRESETS[self.preset], []
        if self.pixel_mm is not None and preset.pixel_mm is not None and preset.is_unusual_spacing(self.pixel_mm):
            low, high = preset.pixel_mm
            found.append(f"pixels of {self.pixel_mm:.3g} mm, the networks were trained on {low:g} to {high:g} mm")
        if self.noise > NOISY:
            found.append(f"noise or compression of {255 * self.noise:.1f} gray levels: not followed exactly")
        if self.degradation == OTHER:
            found.append("reduced in none of the known ways: not followed exactly")
        usual = preset.band.usual
        if self.expected_error is not None and usual is not None and self.expected_error > usual:
            found.append(
                f"unlike what the networks were trained on: expected error {255 * self.expected_error:.1f} gray levels"
            )
        return found


@dataclass(frozen=True)
class Event:
    """What the server tells while it upscales an image."""

    step: int
    """Parts of the work that are done: denoising steps and, of large images, tiles."""
    steps: int
    image: Image | None = None
    """float32 [4H, 4W] in [0, 1], the image as it is expected to become; None unless it was asked for and is due."""
    result: Upscaled | None = None
    """The result, in the last event."""


@dataclass(frozen=True)
class Request:
    """A checked request."""

    image: NDArray[np.floating[Any]]
    seed: int
    pixel_mm: float | None
    options: Options
    preset: Preset
    tells_model: bool
    """Whether the server tells the hash of its model files."""

    @property
    def arrays(self) -> wire.Arrays:
        size = {} if self.pixel_mm is None else {"pixel_mm": self.pixel_mm}
        values = {"seed": self.seed, **size, **asdict(self.options)}
        return {"image": self.image[None], **{name: np.array([[value]]) for name, value in values.items()}}

    @property
    def outputs(self) -> list[str]:
        banded = self.preset.band.scale(self.options.samples) is not None
        outputs = ["upscaled", "lr_error", "found", "noise", "expected_error", *(["spread"] if banded else [])]
        return [*outputs, *(["model"] if self.tells_model else [])]

    def result(self, found: wire.Arrays, seconds: float) -> Upscaled:
        """Return the result from the server's outputs for a batch of one."""
        spread, expected = found.get("spread"), float(found["expected_error"][0, 0])
        return Upscaled(
            found["upscaled"][0],
            None if spread is None else spread[0],
            float(found["lr_error"][0, 0]),
            found["found"][0, 0].decode(),
            float(found["noise"][0, 0]),
            None if expected == UNKNOWN else expected,
            self.pixel_mm,
            self.preset.name,
            found["model"][0, 0].decode() if "model" in found else "",
            self.seed,
            self.options,
            seconds,
        )


class Tiles:
    """The tiles of a large image."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = (1, *(SCALE * side for side in shape))
        self.last: dict[str, NDArray[Any]] = {}
        self.images: dict[str, Image] = {}
        self.lr_error = self.expected = 0.0

    def add(self, tile: wire.Arrays) -> None:
        """Add a tile, in any order; the first one of a repeated request starts anew."""
        top, left = int(tile["top"][0, 0]), int(tile["left"][0, 0])
        if top == left == 0:
            self.images, self.lr_error, self.expected = {}, 0.0, 0.0
        height, width = tile["upscaled"].shape[1:]
        for name in ("upscaled", "spread"):
            if name in tile:
                canvas = self.images.setdefault(name, np.empty(self.shape, np.float32))
                canvas[:, top : top + height, left : left + width] = tile[name]
        share = height * width / (self.shape[1] * self.shape[2])
        self.lr_error = max(self.lr_error, float(tile["lr_error"][0, 0]))
        self.expected += share * float(tile["expected_error"][0, 0])
        self.last = dict(tile)

    def whole(self) -> dict[str, NDArray[Any]]:
        """Return the outputs for the whole image; the expected error is the tiles' mean."""
        numbers = {"lr_error": np.array([[self.lr_error]]), "expected_error": np.array([[self.expected]])}
        return {**self.last, **self.images, **numbers}
