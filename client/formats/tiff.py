"""Decoder of TIFF by tifffile: any byte order, layout, depth and compression that it and imagecodecs support."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from tifffile import PHOTOMETRIC

from client.formats.source import (
    Choice,
    FormatError,
    Source,
    check_choice,
    check_size,
    choose_one,
    from_depth,
    from_numbers,
    luminance,
    orient,
)

GRAY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
JPEGS = (6, 7, 34892)
"""Compressions whose YCbCr is decoded to RGB."""
UNSPECIFIED = 0
"""Meaning of an extra sample; others are kinds of transparency."""
KIND, ORIENTATION, NO_DATA = 262, 274, 42113
"""Tag numbers."""

# problems with a file are reported by us, in one line
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


def read(data: bytes, choice: Choice, notes: list[str]) -> Source:
    """Read a page of a TIFF file.

    Raises:
        FormatError: the file is damaged, too large, or in an unsupported colour space.
    """
    check_choice(choice, "TIFF or .npy")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            pages = full_size(list(tiff.pages))
            return _read_page(pages[choose_one("page", choice.page, len(pages), notes)], len(data), notes)
    except FormatError:
        raise
    except Exception as error:  # a damaged file can make a decoder fail in any way
        raise FormatError(f"is not a readable TIFF: {error}") from error


def full_size(pages: list[Any]) -> list[Any]:
    """Return the pages that are not reduced copies; if all are, those within them."""
    found = [page for page in pages if not page.is_reduced]
    inner = [page for outer in pages for page in outer.pages or [] if not page.is_reduced]
    return found or inner or pages


def _read_page(page: tifffile.TiffPage, size: int, notes: list[str]) -> Source:
    check_size(page.imagewidth, page.imagelength)
    # tifffile would replace missing data with zeros
    ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if not ends or max(ends) > size or min(page.databytecounts) == 0:
        raise FormatError("is damaged: it is cut off, or parts of its pixels are missing")
    if not isinstance(page.bitspersample, int) or page.dtype is None:
        raise FormatError("has channels of different depths, or of an unknown kind of numbers")
    pixels = page.asarray()
    pixels = np.moveaxis(pixels, page.axes.index("S"), -1) if "S" in page.axes else pixels[..., None]
    if pixels.ndim != 3:
        raise FormatError(f"has pixels of shape {page.shape} ({page.axes}), must be one image")
    gray, bits = _gray(page, pixels, notes)
    inverted = page.photometric == PHOTOMETRIC.MINISWHITE and KIND in page.tags
    if gray.dtype.kind == "u" and bits <= 16:
        image, depth = from_depth(gray, bits, notes), 8 if bits <= 8 else 16
        image = 1 - image if inverted else image
    else:
        no_data = float(page.nodata) if NO_DATA in page.tags else None
        image, depth = from_numbers(gray, notes, no_data=no_data, inverted=inverted)
    if inverted:
        notes.append("inverted: the TIFF stores white as 0")
    return Source(orient(image, int(page.tags.valueof(ORIENTATION, default=1)), notes), depth)


def _gray(page: tifffile.TiffPage, pixels: NDArray[Any], notes: list[str]) -> tuple[NDArray[Any], int]:
    """Convert samples [H, W, S], or palette indices, to gray values [H, W]; return them and their depth in bits."""
    photometric, samples, bits = page.photometric, pixels.shape[2], page.bitspersample
    if KIND not in page.tags:
        photometric = PHOTOMETRIC.RGB if samples >= 3 else PHOTOMETRIC.MINISBLACK
        notes.append(f"no photometric interpretation: taken as {photometric.name}")
    if any(meaning != UNSPECIFIED for meaning in page.extrasamples):
        notes.append("transparency ignored")
    if photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        # entries have 16 bits; 8-bit ones are stored times 256 or, by some writers, unscaled
        entries = page.colormap if page.colormap.max() < 256 else page.colormap >> 8
        return luminance(np.moveaxis(entries, 0, -1)[pixels[..., 0]].astype(np.uint8), notes), 8
    if samples >= 3 and (
        photometric == PHOTOMETRIC.RGB or (photometric == PHOTOMETRIC.YCBCR and page.compression in JPEGS)
    ):
        return luminance(pixels[..., :3], notes), bits
    if photometric in GRAY:
        if samples == 3 and (pixels == pixels[..., :1]).all():
            return luminance(pixels, notes), bits
        if samples > 1 + sum(meaning != UNSPECIFIED for meaning in page.extrasamples):
            notes.append(f"channel 1 of {samples}")
        return pixels[..., 0], bits
    name = getattr(photometric, "name", photometric)
    raise FormatError(f"is a TIFF of kind {name} with {samples} channels, must be gray, RGB or palette")
