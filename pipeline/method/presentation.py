"""Upscale images as the networks learnt to see them, whatever way they are presented: turned, inverted, or both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.method.drawn import Array, Drawn, Generate
from pipeline.method.sampler import Seed
from pipeline.spec import HISTORY, LEAST_PIXELS, PRESENTATIONS

SURE = 0.7
"""How likely a presentation must be for an image to be treated as so presented."""


def turned(images: Array, turns: int) -> Array:
    """Images [..., H, W] turned counterclockwise by so many times 90°, in an array of its own."""
    return np.ascontiguousarray(np.rot90(images, turns, axes=(-2, -1)))


def presentations(told: Array) -> NDArray[np.intp]:
    """[B, TOLD] ⇒ each image's number in ``PRESENTATIONS``; the first where no other is likely enough."""
    likely = told[:, HISTORY:]
    return np.where(likely.max(axis=1) >= SURE, likely.argmax(axis=1), 0)


def upright(generate: Generate) -> Generate:
    """``generate``, but for images that are found turned or inverted: these are turned and inverted back for it."""

    def generate_upright(lr: Array, seeds: Sequence[Seed]) -> Drawn:
        drawn = generate(lr, seeds)
        if drawn.told is None or lr[0, 0].size < LEAST_PIXELS:
            return drawn
        found = presentations(drawn.told)
        if not found.any():
            return drawn
        images, told = drawn.images.copy(), drawn.told.copy()
        doubt = None if drawn.doubt is None else drawn.doubt.copy()
        for number in set(found.tolist()) - {0}:
            (turns, inverted), (which,) = PRESENTATIONS[number], np.nonzero(found == number)
            again = generate(turned(-lr[which] if inverted else lr[which], -turns), [seeds[i] for i in which])
            images[which] = turned(1 - again.images if inverted else again.images, turns)
            if doubt is not None and again.doubt is not None:
                doubt[which] = turned(again.doubt, turns)
            if again.told is not None:
                told[which] = again.told
        return Drawn(images, doubt, told)

    return generate_upright
