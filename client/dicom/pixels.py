"""Turn a gray result into the stored values of its source.

The networks see an image as it is displayed: through a window, as gray in [0, 1]. What that loses of the stored values
(all beyond the window, levels finer than gray ones) is added back from the source, and the sum is projected to one that
reduces to the source.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from client.formats.original import Original, Stored
from pipeline.method.images import Image, upsample
from pipeline.method.reduction import enlarge, reduce
from pipeline.spec import SCALE, ReductionName

Values = NDArray[np.float64]
Pixel = TypeVar("Pixel", np.int32, np.bool_)

SMOOTH_STEPS = 2
"""Corrections by interpolated differences, which leave no blocks, before the projection that is exact."""
MAX_STEPS, MIN_STEPS = 12000, 1500
"""Maximum steps of the exact projection of images of up to 256² and from 725² pixels: a minute for 512², two for 1024².

Unsaturated images need one or two; the most are needed by 16 bits of which some were saturated and reduced by Lanczos.
"""
STALL = 300
"""Steps after which a projection that has not come closer is given up, once it is within three tolerances."""
TOLERANCE = 0.25
"""Difference that counts as exact, in levels of the source; rounding adds its own."""


def stored_result(original: Original, lr: Image, image: Image, name: ReductionName, *, exact: bool = True) -> Stored:
    """Return a result's stored values, int32 [4H, 4W].

    Args:
        original: the source.
        lr: its gray image as upscaled, float32 [H, W] in [0, 1].
        image: the result, float32 [4H, 4W] in [0, 1].
        name: how the source was reduced.
        exact: whether the values must reduce to the source's, to within a level.
    """
    low, high = free_range(original)
    span = max(high - low, 1)
    source = ((original.filled() - low) / span).clip(0, 1).astype(np.float32)
    lost = source - (original.stored_of(lr) - low) / span
    values = ((original.stored_of(image) - low) / span + upsample(lost)).astype(np.float32)
    if exact:
        for _ in range(SMOOTH_STEPS):
            values += upsample(source - reduce(values.clip(0, 1), name))
        values = projected(source, values, name, TOLERANCE / span)
    stored = np.rint(values.astype(np.float64) * span).astype(np.int32) + low
    return with_padding(original, stored.clip(low, high).astype(np.int32))


def projected(source: Image, values: Image, name: ReductionName, tolerance: float) -> Image:
    """Return an image in [0, 1] close to ``values`` that reduces to ``source`` within ``tolerance``, if there is one.

    Accelerated projected gradient descent (Beck & Teboulle 2009) on what the image lacks, measured so that without
    bounds the first step is the projection.
    """
    image = ahead = best = np.clip(values, 0, 1)
    least, improved = math.inf, 0
    for step in range(max(MIN_STEPS, min(MAX_STEPS, MAX_STEPS * 256**2 // source.size))):
        missing = source - reduce(ahead, name).clip(0, 1)
        error = float(np.abs(missing).max())
        if error < least:
            best, least, improved = ahead, error, step
        if error < tolerance or (least < 3 * tolerance and step - improved > STALL):
            break
        following = enlarge(missing, name)
        following += ahead
        np.clip(following, 0, 1, out=following)
        ahead = following - image
        ahead *= np.float32(step / (step + 3))
        ahead += following
        np.clip(ahead, 0, 1, out=ahead)
        image = following
    return best


def free_range(original: Original) -> tuple[int, int]:
    """Return the smallest and largest value that can be stored and is not padding, if padding is at an end."""
    low, high = original.limits
    first, last = original.padding_range or (high + 1, low - 1)
    if first <= low <= last < high:
        low = last + 1
    elif low < first <= high <= last:
        high = first - 1
    return low, high


def with_padding(original: Original, stored: Stored) -> Stored:
    """Return [4H, 4W] with the source's padding, and with no other pixel that has its values."""
    if original.padding_range is None:
        return stored
    low, high = original.limits
    first, last = original.padding_range
    taken = (stored >= first) & (stored <= last)
    nearest = np.where(stored - first < last - stored, first - 1, last + 1)
    stored = np.where(taken & (nearest >= low) & (nearest <= high), nearest, stored)
    return np.where(enlarged(original.padding), enlarged(original.stored), stored).astype(np.int32)


def enlarged(pixels: NDArray[Pixel]) -> NDArray[Pixel]:
    """Repeat every pixel 4×4 times."""
    return pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def band(original: Original, image: Image, spread: Image) -> Values:
    """Return the half-width of a band of grays in stored values, [H, W].

    The slope of the curve is that within the band and the window.

    Args:
        original: the source.
        image: gray in [0, 1].
        spread: half-width of the band around it, in [0, 1].
    """
    low, high = (image - spread).clip(0, 1), (image + spread).clip(0, 1)
    width = high - low
    rise = np.abs(original.stored_of(high) - original.stored_of(low))
    return np.divide(spread * rise, width, out=np.zeros_like(rise), where=width > 0)
