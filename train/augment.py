"""Data augmentation: the paper's geometry and cutout, identical for LR and HR; noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.method.images import resize_cubic
from pipeline.spec import SCALE
from train.paper import AugmentationSpec


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of one sample. Squares are (top, left, side) in LR pixels, so they align with both grids."""

    flip: bool = False
    quarter_turns: int = 0
    crop: tuple[int, int, int] | None = None
    cutout: tuple[int, int, int] | None = None


def _square(size: int, side: int, rng: np.random.Generator) -> tuple[int, int, int]:
    top, left = (int(i) for i in rng.integers(0, size - side + 1, 2))
    return top, left, side


def draw(spec: AugmentationSpec, lr_size: int, rng: np.random.Generator) -> Augmentation:
    """Draw an augmentation of an ``lr_size``² image: none for 1 - ``spec.share`` of the samples."""
    if rng.random() >= spec.share:
        return Augmentation()
    flip = bool(rng.random() < spec.horizontal_flip)
    turns = int(rng.choice(spec.rotations)) // 90
    crop = cutout = None
    if rng.random() < spec.random_resized_crop:
        crop = _square(lr_size, round(lr_size * rng.uniform(spec.smallest_crop, 1.0)), rng)
    if rng.random() < spec.cutout:
        cutout = _square(lr_size, round(lr_size * spec.cutout_side), rng)
    return Augmentation(flip, turns, crop, cutout)


def apply(augmentation: Augmentation, image: NDArray[Any], factor: int) -> NDArray[Any]:
    """Augment an image [S, S], where S is ``factor`` times the LR side (1 for LR, 4 for HR)."""
    size = len(image)
    if augmentation.flip:
        image = image[:, ::-1]
    image = np.rot90(image, augmentation.quarter_turns)
    if augmentation.crop:
        top, left, side = (factor * n for n in augmentation.crop)
        image = resize_cubic(np.ascontiguousarray(image[top : top + side, left : left + side]), size, size)
    image = image.copy()
    if augmentation.cutout:
        top, left, side = (factor * n for n in augmentation.cutout)
        image[top : top + side, left : left + side] = 0
    return image


def random_crop(
    lr: NDArray[Any], hr: NDArray[Any], size: int, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Crop the same random square, ``size``² in LR, from an LR and HR image; flip horizontally half of the time."""
    top, left = rng.integers(0, np.array(lr.shape) - size + 1)
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)

    def cut(image: NDArray[Any], factor: int) -> NDArray[Any]:
        square = image[factor * top : factor * (top + size), factor * left : factor * (left + size)]
        return np.ascontiguousarray(square[:, flip])

    return cut(lr, 1), cut(hr, SCALE)


def add_noise(image: NDArray[np.uint8], deviation: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add white noise with a standard deviation in gray levels; round."""
    return np.clip(np.rint(image + rng.normal(0, deviation, image.shape)), 0, 255).astype(np.uint8)
