"""What a DICOM image is apart from its gray values: header, stored values, padding, and how they are displayed.

``client.dicom`` writes results in these terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID

from pipeline.method.images import Image

Stored = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Original:
    """A DICOM image of MONOCHROME1 or 2, as stored."""

    header: Dataset
    """Data set without pixels; what reading completed is completed here."""
    syntax: UID
    """Transfer syntax of the file."""
    stored: Stored
    """int32 [H, W]; padding may have values beyond the stored bits."""
    padding: Mask
    """bool [H, W]."""
    padding_range: tuple[int, int] | None
    """Smallest and largest value of padding."""
    grays: Image
    """float32 [2^bits], gray of every value from the lowest on, as displayed."""
    window: tuple[float, float] | None
    """Center and width of the window as asked for or, if the file has none, of its range; None: the file's own."""
    factor: int = 1
    """Factor by which the image was reduced after it was read."""

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value that can be stored."""
        levels = 2**self.header.BitsStored
        lowest = -levels // 2 if self.header.PixelRepresentation else 0
        return lowest, lowest + levels - 1

    @cached_property
    def _inverse(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Grays in rising order, and the value that stands for each."""
        rising = self.grays[-1] >= self.grays[0]
        curve = np.maximum.accumulate(self.grays if rising else self.grays[::-1])
        grays, first, count = np.unique(curve, return_index=True, return_counts=True)
        places = first + (count - 1) / 2
        if len(grays) > 1:  # black and white begin at the edges of the window
            places[0], places[-1] = count[0] - 1, first[-1]
        low, high = self.limits
        return grays.astype(np.float64), low + places if rising else high - places

    def stored_of(self, gray: Image) -> NDArray[np.float64]:
        """Return the value that is displayed as each gray, not rounded; of several values the middle one.

        Gray 0 and 1 are the edges of the window. Where a curve falls and rises again, its envelope is used.
        """
        return np.interp(gray, *self._inverse)

    def filled(self) -> NDArray[np.float64]:
        """Return the stored values with black, as displayed, in the place of padding."""
        return np.where(self.padding, self.stored_of(np.zeros((), np.float32)), self.stored)

    def smaller(self, reduce: Callable[[Image, int], Image], factor: int) -> Original:
        """Reduce the image; a pixel is padding if most of it was."""
        low, high = self.limits
        # float32 holds 16 bits exactly, and more in between
        values = np.rint(reduce(self.filled().astype(np.float32), factor)).clip(low, high).astype(np.int32)
        height, width = values.shape
        blocks = self.padding[: height * factor, : width * factor].reshape(height, factor, width, factor)
        padding: Mask = blocks.mean(axis=(1, 3)) > 0.5
        if padding.any():
            values[padding] = self.stored[self.padding][0]
        return replace(self, stored=values, padding=padding, factor=factor * self.factor)
