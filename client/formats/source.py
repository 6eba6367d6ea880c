"""What every decoder returns, and what they share: limits, ranges, colour to gray, orientation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.method.images import Image

MAX_PIXELS = 2**28
"""Pixels of an image that is read, 268 megapixels: larger ones would take several GB while they are converted."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luminance (ITU-R BT.601)."""


class FileError(Exception):
    """A file cannot be read or written; the message names it."""


class FormatError(Exception):
    """The file cannot be read; the message goes on after the file's name: "has 3 pages, …"."""


@dataclass(frozen=True)
class Choice:
    """What the user chose about reading; None leaves it to the file."""

    window: tuple[float, float] | None = None
    """center and width, of DICOM"""
    frame: int | None = None
    """of DICOM, from 1"""
    page: int | None = None
    """of TIFF and .npy, from 1"""
    pixel_mm: float | None = None
    """distance of the file's pixels, in mm"""


@dataclass(frozen=True)
class Source:
    """An image as it was in its file."""

    image: Image
    """float32 [H, W] in [0, 1], black is 0"""
    bits: int
    """8 or 16: the depth in which the result should be written"""
    notes: tuple[str, ...] = ()
    """what was decided or changed in reading, for the user"""
    pixel_mm: float | None = None
    """distance of the pixels, in mm, where it is known"""


CHOSEN = {"window": "DICOM", "frame": "DICOM", "page": "TIFF or .npy"}
"""What can be chosen ⇒ the formats that it goes with."""


def check_choice(choice: Choice, formats: str | None = None) -> None:
    """See that what was chosen goes with the file's format, one of ``CHOSEN``'s; None: nothing does.

    Raises:
        FormatError: it does not.
    """
    for flag, needed in CHOSEN.items():
        if needed != formats and getattr(choice, flag) not in (None, 1):
            raise FormatError(f"is no {needed} file, which --{flag} needs")


def check_numbers(values: NDArray[Any]) -> None:
    """Raises FormatError where values are neither integers, floating-point numbers nor truth values."""
    if values.dtype.kind not in "biuf":
        raise FormatError(f"holds {values.dtype} values, must be integers or floating-point numbers")


def check_size(width: int, height: int) -> None:
    """Raises FormatError where the image has no pixels, or too many."""
    if not 0 < width * height <= MAX_PIXELS:
        raise FormatError(f"is {width}×{height}, must be at least 1×1 and at most {MAX_PIXELS / 1e6:.0f} megapixels")


def choose_one(what: str, chosen: int | None, count: int, notes: list[str]) -> int:
    """The index of the page or frame to read; the first unless chosen, which is noted where there are several.

    Raises:
        FormatError: there is none of that number.
    """
    number = chosen or 1
    if number > count:
        raise FormatError(f"has {count} {what}{'s' if count != 1 else ''}, --{what} must be 1 to {count}, got {number}")
    if count > 1:
        notes.append(f"{what} {number} of {count}")
    return number - 1


def from_depth(pixels: NDArray[Any], bits: int, notes: list[str]) -> Image:
    """Unsigned integers of so many bits ⇒ [0, 1]; notes where a deep image never uses its upper bits."""
    top = int(pixels.max())
    if bits > 8 and 0 < top < 2 ** (bits - 4):
        notes.append(f"{bits} bits, but no value above {top}")
    return (pixels / np.float32(2**bits - 1)).astype(np.float32)


def from_range(
    values: NDArray[Any], notes: list[str], outside: NDArray[np.bool_] | None = None, why: str = ""
) -> Image:
    """Numbers ⇒ [0, 1] from the smallest to the largest; pixels ``outside`` do not count and are black.

    A constant image is black. The note begins with ``why``.
    """
    inside = values if outside is None else values[~outside]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    notes.append(f"{why}black is {low:g}, white {high:g}, the smallest and the largest value")
    # halves: the difference of the largest numbers is none
    image = ((values * 0.5 - low * 0.5) / max(high * 0.5 - low * 0.5, 1e-38)).clip(0, 1).astype(np.float32)
    return image if outside is None else np.where(outside, np.float32(0), image)


def from_numbers(
    values: NDArray[Any], notes: list[str], *, no_data: float | None = None, inverted: bool = False
) -> tuple[Image, int]:
    """Pixels of any numeric type ⇒ [0, 1] and the depth to write.

    8 and 16 bit unsigned integers and truth values cover their whole range. Floating-point numbers between 0 and 1 are
    taken as they are; others, and the other integers, from the smallest to the largest. Not-a-numbers, and pixels of
    the value ``no_data``, are black. ``inverted``: the smallest value is white.

    Raises:
        FormatError: they are not numbers, or none is finite.
    """
    check_numbers(values)
    outside, bits = np.zeros(values.shape, bool), 16
    if values.dtype.kind == "b":
        image, bits = values.astype(np.float32), 8
    elif values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        bits = 8 * values.dtype.itemsize
        image = from_depth(values, bits, notes)
    else:
        values = values.astype(np.float64)
        outside = not_finite(values, notes)
        if no_data is not None and (missing := values == no_data).any():
            notes.append(f"{missing.sum()} pixels of the no-data value {no_data:g}: black")
            outside |= missing
        inside = values[~outside]
        if not inside.size:
            raise FormatError("holds no finite values")
        values = np.where(outside, 0, values)
        if inside.min() < 0 or inside.max() > 1:
            image = from_range(values, notes, outside)
        else:
            notes.append(f"black is 0, white 1; values from {inside.min():g} to {inside.max():g}")
            image = values.astype(np.float32)
    return np.where(outside, np.float32(0), 1 - image if inverted else image), bits


def not_finite(values: NDArray[Any], notes: list[str]) -> NDArray[np.bool_]:
    """Where values are NaN or infinite; notes how many."""
    found: NDArray[np.bool_] = ~np.isfinite(values)
    if found.any():
        notes.append(f"{found.sum()} pixels are NaN or infinite: black")
    return found


def luminance(rgb: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """[H, W, 3] ⇒ [H, W] of the same type; a note says which of the two it was: equal channels, or real colour."""
    if (rgb == rgb[..., :1]).all():
        notes.append("colour with equal channels: taken as gray")
        return np.ascontiguousarray(rgb[..., 0])
    notes.append("colour turned to gray")
    gray = np.tensordot(rgb, np.array(LUMA), axes=1)
    return (np.rint(gray) if rgb.dtype.kind in "iu" else gray).astype(rgb.dtype)


ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""EXIF's and TIFF's orientation ⇒ whether to transpose, then to reverse the rows, and the columns."""


def orient(image: Image, orientation: int, notes: list[str]) -> Image:
    """Turn an image upright whose file says how it lies, 2 to 8; anything else is upright."""
    if orientation not in ORIENTATIONS:
        return image
    notes.append(f"turned upright: the file's orientation is {orientation}")
    transpose, rows, columns = ORIENTATIONS[orientation]
    image = image.T if transpose else image
    return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])
