"""NumPy's files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.formats import npy
from client.formats.source import Choice, FormatError, Source

RAMP = np.tile(np.arange(64), (48, 1))


def write(array: NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def read(array: NDArray[Any], choice: Choice | None = None) -> Source:
    notes: list[str] = []
    source = npy.read(write(array), choice or Choice(), notes)
    return Source(source.image, source.bits, tuple(notes))


@pytest.mark.parametrize(
    ("array", "bits"),
    [
        (np.rint(RAMP * 255 / 63).astype("u1"), 8),
        ((RAMP * 1040.25).astype(">u2"), 16),
        (np.asfortranarray(RAMP / 63), 16),
        ((RAMP / 63).astype("f4")[None, :, :, None], 16),
        ((RAMP * 7 - 100).astype("i8"), 16),
        (RAMP * 3.5 + 9, 16),
    ],
)
def test_numbers_of_any_type(array: NDArray[Any], bits: int) -> None:
    source = read(array)
    np.testing.assert_allclose(source.image, RAMP / 63, atol=3e-3)
    assert source.image.dtype == np.float32
    assert source.bits == bits


def test_truth_values() -> None:
    np.testing.assert_array_equal(read(RAMP > 31).image, RAMP > 31)


def test_the_range_is_told() -> None:
    assert read(RAMP * 3.5 + 9).notes == ("black is 9, white 229.5, the smallest and the largest value",)
    assert read(0.25 + RAMP / 126).notes == ("black is 0, white 1; values from 0.25 to 0.75",)


def test_what_is_no_number_is_black() -> None:
    array = RAMP / 63
    array[0, :2] = np.nan, np.inf
    source = read(array)
    np.testing.assert_array_equal(source.image[0, :2], 0)
    assert source.notes[0] == "2 pixels are NaN or infinite: black"


def test_numbers_as_far_apart_as_they_can_be() -> None:
    array = (RAMP / 63 * 2 - 1) * 1.7e308
    np.testing.assert_allclose(read(array).image, RAMP / 63, atol=1e-6)


def test_colour_of_truth_values() -> None:
    red = np.stack([RAMP > 31, RAMP < 0, RAMP < 0], axis=2)
    np.testing.assert_allclose(read(red).image, (RAMP > 31) * 76 / 255, atol=1e-6)


def test_pages_and_colour() -> None:
    pages = np.stack([RAMP, 63 - RAMP]) / 63
    np.testing.assert_allclose(read(pages, Choice(page=2)).image, 1 - RAMP / 63, atol=1e-6)
    assert read(pages).notes[0] == "page 1 of 2"
    rgb = np.stack([RAMP * 4, 252 - RAMP * 4, RAMP], axis=2).astype("u1")
    source = read(rgb)
    np.testing.assert_allclose(source.image, rgb @ [0.299, 0.587, 0.114] / 255, atol=3e-3)
    assert source.notes == ("colour turned to gray",)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"has shape \(5,\), must be \[H, W\]"),
        (np.zeros((2, 2, 2, 2)), "has shape"),
        (np.full((4, 4), np.nan), "holds no finite values"),
        (np.zeros((4, 4), complex), "holds complex128 values, must be integers or floating-point"),
        (np.full((4, 4), "x"), "holds <U1 values"),
        (np.zeros((0, 4)), "must be at least 1×1"),
    ],
)
def test_what_is_no_image(array: NDArray[Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(array)


def test_pickles_are_not_opened() -> None:
    with pytest.raises(FormatError, match="allow_pickle"):
        npy.read(write(np.array([[print]], object), allow_pickle=True), Choice(), [])


def test_a_header_that_promises_too_much() -> None:
    data = write(np.zeros((4, 4))).replace(b"(4, 4), ", b"(999999, 999999), "[:8])
    with pytest.raises(FormatError, match=r"\.npy"):
        npy.read(data[:90], Choice(), [])
