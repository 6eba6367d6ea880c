"""What the networks make of LR images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.method.sampler import Seed

Array = NDArray[np.float32]


class Sampled(NamedTuple):
    """One sample of each of a batch of images, and what the networks tell of it; float32."""

    images: Array
    """[B, 4h, 4w] in about [0, 1]"""
    doubt: Array | None = None
    """[B, 4h, 4w], how far each pixel may be off, in [0, 1] of gray; of networks that tell it"""
    estimates: Array | None = None
    """[B, ESTIMATES], the history of the LR images and how they are presented; of networks that tell it"""


def as_sampled(decoded: tuple[Array, ...], estimates: Array | None) -> Sampled:
    """What ``Networks.decode`` makes, as samples."""
    image, *doubt = decoded
    return Sampled((image.mean(axis=1) + 1) / 2, doubt[0] if doubt else None, estimates)


Generate = Callable[[Array, Sequence[Seed]], Sampled]
"""LR images [B, C, h, w] in [-1, 1] and a seed for each ⇒ one sample of each."""
