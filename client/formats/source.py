"""Result type and shared functions of the decoders: limits, ranges, colour to gray, orientation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.method.images import Image

if TYPE_CHECKING:  # which imports pydicom
    from client.formats.original import Original

MAX_PIXELS = 2**28
"""Maximum pixels of an image, 268 megapixels: converting larger ones would take several GB."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luminance (ITU-R BT.601)."""


class FileError(Exception):
    """A file cannot be read or written; the message names it."""


class FormatError(Exception):
    """A file cannot be read; the message continues the file's name: "has 3 pages, …"."""


@dataclass(frozen=True)
class Choice:
    """The user's choices for reading; None: the file's defaults."""

    window: tuple[float, float] | None = None
    """Center and width, for DICOM."""
    frame: int | None = None
    """Frame number from 1, for DICOM."""
    page: int | None = None
    """Page number from 1, for TIFF and .npy."""
    pixel_mm: float | None = None
    """Pixel spacing, in mm."""
    original: bool = False
    """Whether to keep what results need to be written as DICOM; other images are refused."""


@dataclass(frozen=True)
class Source:
    """An image as read from its file."""

    image: Image
    """float32 [H, W] in [0, 1]; 0 is black."""
    bits: int
    """Depth for writing the result: 8 or 16."""
    notes: tuple[str, ...] = ()
    """Decisions and changes in reading, for the user."""
    pixel_mm: float | None = None
    """Pixel spacing, in mm, if known."""
    original: Original | None = None
    """The DICOM image, if it was asked for."""


CHOSEN = {"window": "DICOM", "frame": "DICOM", "page": "TIFF or .npy"}
"""Choice ⇒ formats that support it."""


def check_choice(choice: Choice, formats: str | None = None) -> None:
    """Check that the format, one of those in ``CHOSEN`` or None, supports all choices.

    Raises:
        FormatError: a choice is not supported.
    """
    for flag, needed in CHOSEN.items():
        if needed != formats and getattr(choice, flag) not in (None, 1):
            raise FormatError(f"must be a {needed} file for --{flag}")


def check_numbers(values: NDArray[Any]) -> None:
    """Raise FormatError unless values are integers, floating-point numbers or booleans."""
    if values.dtype.kind not in "biuf":
        raise FormatError(f"holds {values.dtype} values, must be integers or floating-point numbers")


def check_size(width: int, height: int) -> None:
    """Raise FormatError if the image has no pixels or too many."""
    if not 0 < width * height <= MAX_PIXELS:
        raise FormatError(f"is {width}×{height}, must be at least 1×1 and at most {MAX_PIXELS / 1e6:.0f} megapixels")


def choose_one(what: str, chosen: int | None, count: int, notes: list[str]) -> int:
    """Return the index of the page or frame to read, the first by default, with a note if there are several.

    Raises:
        FormatError: the number is too large.
    """
    number = chosen or 1
    if number > count:
        raise FormatError(f"has {count} {what}{'s' if count != 1 else ''}, --{what} must be 1 to {count}, got {number}")
    if count > 1:
        notes.append(f"{what} {number} of {count}")
    return number - 1


def from_depth(pixels: NDArray[Any], bits: int, notes: list[str]) -> Image:
    """Convert unsigned integers of this depth to [0, 1], with a note if a deep image never uses its upper bits."""
    top = int(pixels.max())
    if bits > 8 and 0 < top < 2 ** (bits - 4):
        notes.append(f"{bits} bits, but no value above {top}")
    return (pixels / np.float32(2**bits - 1)).astype(np.float32)


def range_of(
    values: NDArray[Any], notes: list[str], outside: NDArray[np.bool_] | None = None, why: str = ""
) -> tuple[float, float]:
    """Return the smallest and the largest number, without those ``outside``. The note begins with ``why``."""
    inside = values if outside is None else values[~outside]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    notes.append(f"{why}black is {low:g}, white {high:g}, the smallest and the largest value")
    return low, high


def between(low: float, high: float, values: NDArray[Any]) -> Image:
    """Map low … high to [0, 1]; if they are equal, low becomes black."""
    # halved, because the difference of the largest numbers would overflow
    return ((values * 0.5 - low * 0.5) / max(high * 0.5 - low * 0.5, 1e-38)).clip(0, 1).astype(np.float32)


def from_numbers(
    values: NDArray[Any], notes: list[str], *, no_data: float | None = None, inverted: bool = False
) -> tuple[Image, int]:
    """Convert pixels of any numeric type to [0, 1] and return the depth for writing.

    Unsigned 8- and 16-bit integers and booleans are mapped from their full range. Floating-point numbers in [0, 1] are
    unchanged; others, and other integers, are mapped from smallest to largest. NaN, infinite values and ``no_data``
    become black. ``inverted``: the smallest value is white.

    Raises:
        FormatError: values are not numbers, or none is finite.
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
            image = between(*range_of(values, notes, outside), values)
        else:
            notes.append(f"black is 0, white 1; values from {inside.min():g} to {inside.max():g}")
            image = values.astype(np.float32)
    return np.where(outside, np.float32(0), 1 - image if inverted else image), bits


def not_finite(values: NDArray[Any], notes: list[str]) -> NDArray[np.bool_]:
    """Return the mask of NaN and infinite values, with a note on their number."""
    found: NDArray[np.bool_] = ~np.isfinite(values)
    if found.any():
        notes.append(f"{found.sum()} pixels are NaN or infinite: black")
    return found


def luminance(rgb: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """Convert [H, W, 3] to [H, W] of the same type, with a note on whether channels were equal or in real colour."""
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
"""EXIF and TIFF orientation ⇒ whether to transpose, then reverse rows and columns."""


def orient(image: Image, orientation: int, notes: list[str]) -> Image:
    """Turn an image upright by its file's orientation, 2 to 8; others are upright already."""
    if orientation not in ORIENTATIONS:
        return image
    notes.append(f"turned upright: the file's orientation is {orientation}")
    transpose, rows, columns = ORIENTATIONS[orientation]
    image = image.T if transpose else image
    return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])
