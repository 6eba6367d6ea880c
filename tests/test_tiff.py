"""TIFF of every layout."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from client.formats import tiff
from client.formats.source import Choice, FormatError, Source

RAMP = np.tile(np.arange(64), (48, 1))
EIGHT, SIXTEEN = (RAMP * 4).astype("u1"), (RAMP * 1040).astype("u2")


def write(pixels: NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **{"photometric": "minisblack", **options})
    return out.getvalue()


def read(data: bytes, choice: Choice | None = None) -> Source:
    notes: list[str] = []
    source = tiff.read(data, choice or Choice(), notes)
    return Source(source.image, source.bits, tuple(notes))


@pytest.mark.parametrize(
    "options", [{}, {"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}, {"rowsperstrip": 7}]
)
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd"])
@pytest.mark.parametrize("pixels", [EIGHT, SIXTEEN], ids=["8 bit", "16 bit"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_gray_of_every_layout(
    options: dict[str, Any], compression: str | None, pixels: NDArray[Any], photometric: str
) -> None:
    white_is_zero = photometric == "miniswhite"
    source = read(write(pixels, compression=compression, photometric=photometric, **options))
    unit = pixels / np.iinfo(pixels.dtype).max
    np.testing.assert_allclose(source.image, 1 - unit if white_is_zero else unit, atol=1e-6)
    assert source.bits == 8 * pixels.itemsize
    assert source.notes == (("inverted: the TIFF stores white as 0",) if white_is_zero else ())


def packed(pixels: NDArray[Any], bits: int, order: str = "<") -> bytes:
    """A TIFF of one strip, with each row's values packed without gaps between them, which tifffile does not write."""
    shifts = np.arange(bits - 1, -1, -1)
    rows = np.packbits((pixels[..., None].astype(int) >> shifts & 1).reshape(len(pixels), -1), axis=1).tobytes()
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 0), (277, 1), (278, height)]
    tags.append((279, len(rows)))
    start = 8 + 2 + 12 * len(tags) + 4
    tags[5] = (273, start)
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    magic = b"II" if order == "<" else b"MM"
    return magic + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + struct.pack(f"{order}I", 0) + rows


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12])
def test_packed_bits(bits: int, order: str) -> None:
    pixels = RAMP[:, :61] * (2**bits - 1) // 63
    source = read(packed(pixels, bits, order))
    np.testing.assert_allclose(source.image, pixels / (2**bits - 1), atol=1e-6)
    assert source.bits == (8 if bits <= 8 else 16)


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
def test_transparency_is_ignored_and_the_depth_kept(alpha: str) -> None:
    pixels = np.stack([SIXTEEN, np.full_like(SIXTEEN, 65535)], axis=-1)
    source = read(write(pixels, extrasamples=[alpha]))
    np.testing.assert_allclose(source.image, SIXTEEN / 65535, atol=1e-6)
    assert (source.bits, source.notes) == (16, ("transparency ignored",))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("pixels", [EIGHT, SIXTEEN], ids=["8 bit", "16 bit"])
def test_colour_becomes_gray(planar: str, pixels: NDArray[Any]) -> None:
    top = np.iinfo(pixels.dtype).max
    rgb = np.stack([pixels, pixels[:, ::-1], pixels // 2])
    stored = rgb if planar == "separate" else np.moveaxis(rgb, 0, -1)
    source = read(write(stored, photometric="rgb", planarconfig=planar))
    np.testing.assert_allclose(source.image, np.tensordot([0.299, 0.587, 0.114], rgb, 1) / top, atol=3e-3)
    assert (source.bits, source.notes) == (8 * pixels.itemsize, ("colour turned to gray",))


def test_colour_in_jpeg() -> None:
    rgb = np.stack([EIGHT, EIGHT[:, ::-1], EIGHT // 2], axis=-1)
    source = read(write(rgb, photometric="rgb", compression="jpeg"))
    np.testing.assert_allclose(source.image, rgb @ [0.299, 0.587, 0.114] / 255, atol=0.05)


@pytest.mark.parametrize("scale", [257, 256, 1])
def test_a_palette_of_gray(scale: int) -> None:
    colormap = np.tile(np.arange(256, dtype="u2") * scale, (3, 1)).astype("u2")
    source = read(write(EIGHT, photometric="palette", colormap=colormap))
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=1e-6)
    assert source.notes == ("colour with equal channels: taken as gray",)


@pytest.mark.parametrize(
    ("pixels", "low", "high"),
    [
        ((RAMP / 63).astype("f4"), 0, 1),
        ((RAMP / 63).astype("f8"), 0, 1),
        ((RAMP * 10.5 - 7).astype("f4"), -7, 654.5),
        ((RAMP / 63).astype("f2"), 0, 1),
        ((RAMP - 20).astype("i2"), -20, 43),
        ((RAMP * 10**7).astype("u4"), 0, 63 * 10**7),
    ],
)
def test_floats_and_other_integers_by_their_range_which_is_said(pixels: NDArray[Any], low: float, high: float) -> None:
    source = read(write(pixels))
    np.testing.assert_allclose(source.image, RAMP / 63, atol=1e-3)
    assert source.bits == 16
    assert source.notes[0].startswith(f"black is {low:g}, white {high:g}")


def test_floats_within_0_and_1_are_taken_as_they_are() -> None:
    pixels = (0.25 + RAMP / 126).astype("f4")
    source = read(write(pixels))
    np.testing.assert_allclose(source.image, pixels, atol=1e-6)
    assert source.notes == ("black is 0, white 1; values from 0.25 to 0.75",)


def test_pages() -> None:
    data = write(np.stack([EIGHT, 252 - EIGHT]))
    first, second = read(data), read(data, Choice(page=2))
    np.testing.assert_allclose(first.image, EIGHT / 255, atol=1e-6)
    np.testing.assert_allclose(second.image, (252 - EIGHT) / 255, atol=1e-6)
    assert (first.notes, second.notes) == (("page 1 of 2",), ("page 2 of 2",))
    with pytest.raises(FormatError, match="has 2 pages, --page must be 1 to 2, got 3"):
        read(data, Choice(page=3))


def test_reduced_copies_are_not_pages(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(EIGHT[::4, ::4], photometric="minisblack", subfiletype=1)
        out.write(EIGHT, photometric="minisblack")
    source = read((tmp_path / "a.tif").read_bytes())
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=1e-6)
    with tifffile.TiffWriter(tmp_path / "b.tif") as out:
        out.write(EIGHT[::4, ::4], photometric="minisblack", subfiletype=1, subifds=1)
        out.write(EIGHT, photometric="minisblack")
    np.testing.assert_allclose(read((tmp_path / "b.tif").read_bytes()).image, EIGHT / 255, atol=1e-6)


def test_channels_that_are_left_out_are_told() -> None:
    three = np.stack([EIGHT, EIGHT // 2, EIGHT // 3], axis=-1)
    source = read(write(three, extrasamples=["unspecified"] * 2))
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=1e-6)
    assert source.notes == ("channel 1 of 3",)


def test_what_is_no_number_or_no_data_is_black_where_white_is_zero_too() -> None:
    pixels = (RAMP / 63).astype("f4")
    pixels[0, :2] = np.nan, np.inf
    source = read(write(pixels, photometric="miniswhite"))
    np.testing.assert_array_equal(source.image[0, :2], 0)
    np.testing.assert_allclose(source.image[1:], 1 - RAMP[1:] / 63, atol=1e-6)
    missing = (RAMP * 10 + 100).astype("i2")
    missing[0] = -9999
    source = read(write(missing, extratags=[(42113, "s", 0, "-9999", True)]))
    np.testing.assert_array_equal(source.image[0], 0)
    np.testing.assert_allclose(source.image[1:], RAMP[1:] / 63, atol=1e-6)
    assert "64 pixels of the no-data value -9999: black" in source.notes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    source = read(write(EIGHT, extratags=[(274, "H", 1, orientation, True)]))
    assert source.image.shape == ((48, 64) if orientation <= 4 else (64, 48))
    assert (source.notes != ()) == (orientation > 1)


def test_deep_files_of_few_values_are_told() -> None:
    assert read(write((RAMP * 60).astype("u2"))).notes == ("16 bits, but no value above 3780",)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_a_file_that_is_cut_off(compression: str | None, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64)).astype("u1")
    data = write(noise, compression=compression)
    with pytest.raises(FormatError):
        read(data[: int(len(data) * share)])


def test_colour_spaces_that_are_not_supported_are_named() -> None:
    with pytest.raises(FormatError, match="is a TIFF of kind SEPARATED with 4 channels, must be gray, RGB"):
        read(write(np.stack([EIGHT] * 4, axis=-1), photometric="separated"))


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    data = bytearray(write(EIGHT))
    width = data.index(bytes([0, 1, 4, 0]))
    data[width + 8 : width + 12] = (1_000_000).to_bytes(4, "little")
    data[width + 20 : width + 24] = (1_000_000).to_bytes(4, "little")
    with pytest.raises(FormatError, match="is 1000000×1000000, must be .* at most 268 megapixels"):
        read(bytes(data))
