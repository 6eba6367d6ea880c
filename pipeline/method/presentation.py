"""Upscale rotated or inverted images in the presentation that the networks were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.method.sampled import Array, Generate, Sampled
from pipeline.method.sampler import Seed
from pipeline.spec import HISTORY, MIN_PIXELS, PRESENTATIONS

MIN_CONFIDENCE = 0.7
"""Minimum probability of a presentation to act on it."""


def rotate(images: Array, turns: int) -> Array:
    """Return a copy of images [..., H, W] rotated by ``turns`` counterclockwise quarter turns."""
    return np.ascontiguousarray(np.rot90(images, turns, axes=(-2, -1)))


def presentations(estimates: Array) -> NDArray[np.intp]:
    """Return each image's index in ``PRESENTATIONS`` from [B, ESTIMATES]; 0 unless another is likely enough."""
    likely = estimates[:, HISTORY:]
    return np.where(likely.max(axis=1) >= MIN_CONFIDENCE, likely.argmax(axis=1), 0)


def upright(generate: Generate) -> Generate:
    """Wrap ``generate`` to undo detected rotation and inversion first and reapply them to the result."""

    def generate_upright(lr: Array, seeds: Sequence[Seed]) -> Sampled:
        sampled = generate(lr, seeds)
        if sampled.estimates is None or lr[0].size < MIN_PIXELS:
            return sampled
        found = presentations(sampled.estimates)
        if not found.any():
            return sampled
        images, estimates = sampled.images.copy(), sampled.estimates.copy()
        doubt = None if sampled.doubt is None else sampled.doubt.copy()
        for number in set(found.tolist()) - {0}:
            (turns, inverted), (which,) = PRESENTATIONS[number], np.nonzero(found == number)
            again = generate(rotate(1 - lr[which] if inverted else lr[which], -turns), [seeds[i] for i in which])
            images[which] = rotate(1 - again.images if inverted else again.images, turns)
            if doubt is not None and again.doubt is not None:
                doubt[which] = rotate(again.doubt, turns)
            if again.estimates is not None:
                estimates[which] = again.estimates
        return Sampled(images, doubt, estimates)

    return generate_upright
