"""Decoder of PNG and JPEG: Pillow reports damage, OpenCV preserves 16-bit colour."""

from __future__ import annotations

import io
import struct
from operator import attrgetter

import cv2
import numpy as np
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as PILImage

from client.formats.kinds import MAGIC
from client.formats.source import (
    Choice,
    FormatError,
    Source,
    check_choice,
    check_size,
    from_depth,
    luminance,
    orient,
)

DROPPED = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of any size without effect on gray values, for which decoders have their own limits."""

# ``check_size`` sets the limit; Pillow's would warn or fail earlier
PILImage.MAX_IMAGE_PIXELS = None
# files that OpenCV cannot decode are reported by us, in one line; newer OpenCV releases have moved the function
attrgetter("setLogLevel" if hasattr(cv2, "setLogLevel") else "utils.logging.setLogLevel")(cv2)(0)


def without_text(png: bytes) -> bytes:
    """Remove text and colour profile from a PNG."""
    parts, start = [png[:8]], 8
    while start + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        end = start + 12 + length
        if kind not in DROPPED:
            parts.append(png[start:end])
        start = end
    return b"".join(parts)


def read(data: bytes, choice: Choice, notes: list[str]) -> Source:
    """Read a PNG or JPEG file.

    Raises:
        FormatError: the file is damaged or too large.
    """
    check_choice(choice)
    if data.startswith(MAGIC["png"]):
        data = without_text(data)
    try:
        with PILImage.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            check_size(*image.size)
            image.load()
            if (frames := getattr(image, "n_frames", 1)) > 1:
                notes.append(f"frame 1 of {frames}")
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                notes.append("transparency ignored")
            orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except FormatError:
        raise
    except UnidentifiedImageError as error:
        raise FormatError("is damaged, or of an unsupported kind (lossless JPEG, or JPEG of 12 or 16 bits)") from error
    except Exception as error:  # a damaged file can make a decoder fail in any way
        raise FormatError(f"is damaged: {error}") from error
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise FormatError("is damaged: it cannot be decoded")
    bits = 8 * pixels.dtype.itemsize
    gray = luminance(pixels[..., ::-1], notes) if pixels.ndim == 3 else pixels
    return Source(orient(from_depth(gray, bits, notes), orientation, notes), bits)
