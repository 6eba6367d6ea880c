"""Stored values of results: they reduce to the source's, look as the result does, and keep padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from client.dicom.pixels import band, projected, stored_result
from client.formats.source import Source
from pipeline.method.images import upsample
from pipeline.method.reduction import reduce
from pipeline.spec import REDUCTIONS, SCALE, ReductionName
from tests.dicom_files import lut, make_dataset, make_radiograph, make_result, read_original, to_bytes

WINDOWS: dict[str, dict[str, object]] = {
    "the file's, which cuts values off": {},
    "none": {"WindowCenter": None, "WindowWidth": None},
    "sigmoid": {"VOILUTFunction": "SIGMOID"},
    "negative slope": {"RescaleSlope": -1, "RescaleIntercept": 4095},
}


def result_of(source: Source, name: ReductionName = "cubic") -> NDArray[np.int32]:
    assert source.original is not None
    return stored_result(source.original, source.image, make_result(source, name).image, name)


def round_trip(source: Source, name: ReductionName = "cubic") -> float:
    """The largest difference in levels, outside padding, between the source and its result reduced again."""
    original = source.original
    assert original is not None
    black = np.rint(original.stored_of(np.zeros((), np.float32)))
    wide = original.padding.repeat(SCALE, 0).repeat(SCALE, 1)
    pixels = np.where(wide, black, result_of(source, name)).astype(np.float32)
    difference = reduce(pixels, name).clip(*original.limits) - original.stored
    return float(np.abs(difference[~original.padding]).max())


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduced_again_it_is_the_source(bits: int, inverted: bool, name: ReductionName) -> None:
    source = read_original(to_bytes(make_radiograph(bits=bits, inverted=inverted, reduction=name)))
    assert round_trip(source, name) <= 1


@pytest.mark.parametrize("name", ["bilinear", "lanczos"])
def test_saturation_that_leaves_little_freedom_is_met(name: ReductionName, rng: np.random.Generator) -> None:
    """A third of the pixels and more are at an end, and the others tell to a 65,536th how much around them is."""
    y, x = np.mgrid[:128, :128] / 128
    hr = (0.5 + 4 * np.sin(9 * x) * np.cos(7 * y) + rng.normal(0, 0.03, x.shape)).clip(0, 1).astype(np.float32)
    lr = (np.rint(reduce(hr, name).clip(0, 1) * 65535) / 65535).astype(np.float32)
    assert np.isin(lr, (0, 1)).mean() > 1 / 3
    stored = np.rint(projected(lr, upsample(lr), name, 0.25 / 65535) * 65535) / np.float32(65535)
    assert np.abs(reduce(stored, name).clip(0, 1) - lr).max() < 1 / 65535


@pytest.mark.parametrize("window", WINDOWS)
def test_values_outside_the_window_come_back(window: str) -> None:
    source = read_original(to_bytes(make_radiograph(), **WINDOWS[window]))
    assert round_trip(source) <= 1


def test_values_between_the_levels_of_a_coarse_table_come_back() -> None:
    entries = np.repeat(np.arange(16), 256)  # 16 grays for 4096 values
    dataset = make_radiograph()
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.VOILUTSequence = [lut(0, entries, 4)]
    source = read_original(to_bytes(dataset))
    assert len(np.unique(source.image)) == 16
    assert round_trip(source) <= 1


@pytest.mark.parametrize("inverted", [False, True])
def test_it_looks_as_the_result_does(inverted: bool) -> None:
    dataset = make_radiograph(inverted=inverted)
    source = read_original(to_bytes(dataset, WindowCenter=2048, WindowWidth=4096))
    assert source.original is not None
    shown = source.original.grays[result_of(source, "area") - source.original.limits[0]]
    assert np.abs(shown - make_result(source, "area").image).max() < 1 / 255


def padded(value: int, dtype: str, bits: int, **tags: object) -> tuple[Source, NDArray[np.bool_]]:
    """A ramp with a frame of padding, and the mask of the frame, enlarged."""
    pixels = np.tile(np.linspace(100, 1000, 32), (24, 1)).astype(dtype)
    frame = np.ones(pixels.shape, bool)
    frame[4:-4, 5:-5] = False
    dataset = make_dataset(np.where(frame, value, pixels).astype(dtype), bits)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    source = read_original(to_bytes(dataset, PixelPaddingValue=value, **tags))
    return source, frame.repeat(SCALE, 0).repeat(SCALE, 1)


@pytest.mark.parametrize(
    ("value", "dtype", "bits"),
    [
        (0, "u2", 12), (4095, "u2", 12), (-2000, "i2", 16), (-32768, "i2", 16), (550, "u2", 12), (65535, "u2", 12),
    ],
)  # fmt: skip
def test_padding_is_padding_and_nothing_else_is(value: int, dtype: str, bits: int) -> None:
    source, frame = padded(value, dtype, bits)
    stored = result_of(source)
    np.testing.assert_array_equal(stored == value, frame)
    assert round_trip(source) <= 1


def test_a_range_of_padding() -> None:
    source, frame = padded(0, "u2", 12, PixelPaddingRangeLimit=50)
    stored = result_of(source)
    np.testing.assert_array_equal(stored <= 50, frame)


def test_what_is_not_to_be_exact_follows_the_result() -> None:
    source = read_original(to_bytes(make_radiograph(), WindowCenter=2048, WindowWidth=4096))
    assert source.original is not None
    brighter = np.clip(make_result(source).image + 0.1, 0, 1)
    free = stored_result(source.original, source.image, brighter, "cubic", exact=False)
    exact = stored_result(source.original, source.image, brighter, "cubic")
    assert np.median(free - exact) == pytest.approx(0.1 * 4095, rel=0.05)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_band_is_as_wide_as_the_window_says(sign: int) -> None:
    tags: dict[str, Any] = {"RescaleSlope": sign, "RescaleIntercept": 0 if sign > 0 else 4095}
    source = read_original(to_bytes(make_radiograph(), WindowCenter=2048, WindowWidth=2001, **tags))
    assert source.original is not None
    gray = np.linspace(0, 1, 11, dtype=np.float32)[None]
    width = band(source.original, gray, np.full_like(gray, 0.01))
    np.testing.assert_allclose(width, 20, rtol=0.06)
