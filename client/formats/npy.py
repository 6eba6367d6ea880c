"""Decoder of NumPy's .npy files."""

from __future__ import annotations

import io

import numpy as np

from client.formats.source import (
    Choice,
    FormatError,
    Source,
    check_choice,
    check_numbers,
    check_size,
    choose_one,
    from_numbers,
    luminance,
)

MAX_HEADER = 10**6
"""Maximum header size in bytes, limited because headers are parsed as Python."""


def read(data: bytes, choice: Choice, notes: list[str]) -> Source:
    """Read an array [H, W], [N, H, W] (pages), or [H, W, 3] (colour); see ``from_numbers`` for its range.

    Raises:
        FormatError: the file is damaged or too large, or has another shape or no numbers.
    """
    check_choice(choice, "TIFF or .npy")
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False, max_header_size=MAX_HEADER)  # type: ignore[call-arg]
    except Exception as error:  # a damaged header can make it fail in any way
        raise FormatError(f"is not a readable .npy file: {error}") from error
    while array.ndim > 2 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.ndim not in (2, 3):
        raise FormatError(f"has shape {array.shape}, must be [H, W], [N, H, W] or [H, W, 3]")
    check_size(*(array.shape[1::-1] if colour else array.shape[:-3:-1]))
    page = choose_one("page", choice.page, 1 if colour or array.ndim == 2 else len(array), notes)
    check_numbers(array)
    if colour:
        if array.shape[2] == 4:
            notes.append("transparency ignored")
        rgb = array[..., :3]
        array = luminance(rgb * np.uint8(255) if rgb.dtype.kind == "b" else rgb, notes)
    elif array.ndim == 3:
        array = array[page]
    return Source(*from_numbers(array, notes))
