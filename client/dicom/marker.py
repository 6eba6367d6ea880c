"""Write the caution into an image's stored values."""

from __future__ import annotations

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from client.formats.original import Mask, Original, Stored

WIDTH = 0.6
"""Width of the text, as a share of the image's."""
SMALLEST = 8
"""Minimum size of the font, in pixels."""


def burn_in(original: Original, stored: Stored, text: str) -> Stored:
    """Write a text at the bottom of an image [H, W], in what is displayed as white on what is displayed as black."""
    white, black = (int(np.rint(value)) for value in original.stored_of(np.array([1, 0], np.float32)))
    marked = stored.copy()
    letters = letters_of(text, *stored.shape)
    height, width = letters.shape
    top, left = stored.shape[0] - height, (stored.shape[1] - width) // 2
    marked[top:, left : left + width] = np.where(letters, white, black)
    return marked


def letters_of(text: str, height: int, width: int) -> Mask:
    """Return a box of at most ``height`` × ``width`` with the text, cut off where it does not fit."""
    size = SMALLEST
    while size < height / 4 and _length(text, size + 1) <= WIDTH * width:
        size += 1
    margin = size // 2
    box = PILImage.new("1", (min(width, _length(text, size) + 2 * margin), min(height, 2 * size)))
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(box)
    draw.fontmode = "1"
    draw.text((margin, size), text, font=font, fill=1, anchor="lm")
    return np.asarray(box, dtype=bool)


def _length(text: str, size: int) -> int:
    return int(ImageFont.load_default(size).getlength(text)) + 1
