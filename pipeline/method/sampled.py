"""Samples of the networks for a batch of LR images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.method.sampler import Seed

Array = NDArray[np.float32]


class Sampled(NamedTuple):
    """One sample per image of a batch, with the networks' estimates; float32."""

    images: Array
    """[B, 4h, 4w], approximately in [0, 1]."""
    doubt: Array | None = None
    """[B, 4h, 4w], estimated error of each pixel in [0, 1] of gray; None if the networks do not estimate it."""
    estimates: Array | None = None
    """[B, ESTIMATES], history and presentation of the LR images; None if the networks do not estimate them."""


def as_sampled(decoded: tuple[Array, ...], estimates: Array | None) -> Sampled:
    """Convert the output of ``Networks.decode`` to samples."""
    image, *doubt = decoded
    return Sampled((image.mean(axis=1) + 1) / 2, doubt[0] if doubt else None, estimates)


Generate = Callable[[Array, Sequence[Seed]], Sampled]
"""(LR images [B, h, w] in [0, 1], sides a multiple of the preset's, one seed per image) ⇒ one sample per image."""
