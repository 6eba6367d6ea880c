"""DICOM files: what is in them, what they may lack, how they are compressed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.formats import dicom
from client.formats.dicom_codecs import guess_syntax
from client.formats.source import Choice, FormatError, Source
from tests.dicom_files import encode, lut, make_dataset, ramp, rle, to_bytes

RAMP = ramp(0, 4095, "u2")
UNIT = RAMP / 4095
BASE = "1.2.840.10008.1.2.4"


def read(data: bytes, choice: Choice | None = None) -> Source:
    notes: list[str] = []
    source = dicom.read(data, choice or Choice(), notes)
    return replace(source, notes=tuple(notes))


@pytest.mark.slow
def test_the_real_radiograph() -> None:
    path = get_testdata_file("RG1_UNCR.dcm")
    assert path is not None
    source = read(Path(path).read_bytes())
    assert (source.image.shape, source.bits) == ((1955, 1841), 16)
    assert "inverted: MONOCHROME1 stores white as 0" in source.notes
    assert 0 <= source.image.min() < source.image.max() <= 1
    spine, air = source.image[900:1100, 900:950].mean(), source.image[100:200, 50:150].mean()
    assert spine > air, "dense tissue is bright once MONOCHROME1 is inverted"


EIGHT = np.tile(np.linspace(0, 255, 64), (16, 1)).astype("u1")
TWELVE = np.tile(np.linspace(0, 4095, 64), (16, 1)).astype("u2")
COMPRESSED: dict[str, tuple[NDArray[Any], int, str, Callable[[], bytes | bytearray], float]] = {
    "JPEG baseline": (EIGHT, 8, f"{BASE}.50", lambda: imagecodecs.jpeg8_encode(EIGHT, level=95), 0.02),
    "JPEG extended": (TWELVE, 12, f"{BASE}.51", lambda: imagecodecs.jpeg8_encode(TWELVE, bitspersample=12), 0.02),
    "JPEG lossless": (TWELVE, 12, f"{BASE}.70", lambda: imagecodecs.ljpeg_encode(TWELVE, bitspersample=12), 0),
    "JPEG-LS": (TWELVE, 12, f"{BASE}.80", lambda: imagecodecs.jpegls_encode(TWELVE), 0),
    "JPEG 2000": (
        TWELVE, 12, f"{BASE}.90",
        lambda: imagecodecs.jpeg2k_encode(TWELVE, bitspersample=12, reversible=True, codecformat="J2K"), 0,
    ),
    "RLE": (EIGHT, 8, "1.2.840.10008.1.2.5", lambda: rle(EIGHT.tobytes()), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSED)
def test_every_compression_is_decoded(name: str) -> None:
    pixels, bits, syntax, frame, tolerance = COMPRESSED[name]
    data = to_bytes(encode(make_dataset(pixels, bits, syntax), frame()))
    np.testing.assert_allclose(read(data).image, pixels / (2**bits - 1), atol=tolerance + 1e-6)


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_file_that_does_not_say_how_is_decoded_too(name: str) -> None:
    pixels, bits, syntax, frame, tolerance = COMPRESSED[name]
    dataset = encode(make_dataset(pixels, bits, syntax), frame())
    found = guess_syntax(dataset.PixelData)
    assert found is not None
    dataset.file_meta.TransferSyntaxUID = found
    np.testing.assert_allclose(read(to_bytes(dataset)).image, pixels / (2**bits - 1), atol=tolerance + 1e-6)


@pytest.mark.parametrize(
    "name", ["JPEG-LL", "JPGExtended", "JPEGLSNearLossless_16", "MR_small_jp2klossless", "MR_small_RLE", "693_J2KR"]
)
def test_files_by_other_makers(name: str) -> None:
    path = get_testdata_file(f"{name}.dcm")
    assert path is not None
    assert read(Path(path).read_bytes()).image.std() > 0.01


def test_an_unknown_compression_is_named() -> None:
    dataset = encode(make_dataset(EIGHT, 8, "1.2.840.10008.1.2.4.100"), b"\0\0\1\xb3" * 9)
    with pytest.raises(FormatError, match="is compressed as MPEG2 .*, which is not supported"):
        read(to_bytes(dataset))


def without_preamble(dataset: Dataset) -> bytes:
    return to_bytes(dataset)[132:]


def without_meta(dataset: Dataset, *, implicit: bool, little: bool = True) -> bytes:
    out = io.BytesIO()
    pydicom.dcmwrite(
        out, Dataset({e.tag: e for e in dataset}), implicit_vr=implicit, little_endian=little, enforce_file_format=False
    )
    return out.getvalue()


def test_a_file_without_preamble() -> None:
    source = read(without_preamble(make_dataset(RAMP, 12)))
    np.testing.assert_allclose(source.image, UNIT, atol=1e-6)
    assert "DICOM without a preamble" in source.notes


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_a_file_without_transfer_syntax(implicit: bool, little: bool) -> None:
    dataset = make_dataset(RAMP if little else RAMP.byteswap(), 12)
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    source = read(without_meta(dataset, implicit=implicit, little=little))
    np.testing.assert_allclose(source.image, UNIT, atol=1e-6)
    assert f"no transfer syntax: taken as {syntax.name}" in source.notes


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ("PhotometricInterpretation", "no PhotometricInterpretation: taken as MONOCHROME2"),
        ("PixelRepresentation", "no PixelRepresentation: taken as unsigned"),
        ("BitsStored", "BitsStored is None: taken as 16"),
        ("BitsAllocated", "no BitsAllocated: taken as 16"),
        ("SamplesPerPixel", "no window"),
        ("HighBit", "no window"),
    ],
)
def test_what_a_file_may_lack(missing: str, note: str) -> None:
    source = read(to_bytes(make_dataset(RAMP, 12), **{missing: None}))
    np.testing.assert_allclose(source.image, UNIT, atol=1e-6)
    assert any(note in found for found in source.notes), source.notes


def test_a_decimal_comma() -> None:
    dataset = make_dataset(RAMP, 12)
    data = to_bytes(dataset, WindowCenter="2048.5", WindowWidth="4096.5")
    source = read(data.replace(b"2048.5", b"2048,5"))
    np.testing.assert_allclose(source.image, read(data).image, atol=1e-6)
    assert "WindowCenter is '2048,5': comma taken as decimal point" in source.notes


def test_a_number_that_is_none_is_ignored() -> None:
    data = to_bytes(make_dataset(RAMP, 12), WindowCenter="2048.5", WindowWidth="4096.5").replace(b"2048.5", b"centre")
    source = read(data)
    np.testing.assert_allclose(source.image, UNIT, atol=1e-6)
    assert "WindowCenter is 'centre', which is not a number: ignored" in source.notes


@pytest.mark.parametrize("per_frame", [False, True])
def test_functional_groups_hold_window_and_rescale_of_a_frame(per_frame: bool) -> None:
    frames = [RAMP, RAMP[:, ::-1]]
    dataset = make_dataset(RAMP, 12)
    dataset.PixelData = b"".join(frame.tobytes() for frame in frames)

    def group(center: str) -> Dataset:
        voi, rescale, item = Dataset(), Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, "4096"
        rescale.RescaleSlope, rescale.RescaleIntercept = "2", "-100"
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [voi], [rescale]
        return item

    centers = ("2048", "3000") if per_frame else ("3000", "3000")
    sequence = "PerFrameFunctionalGroupsSequence" if per_frame else "SharedFunctionalGroupsSequence"
    data = to_bytes(
        dataset,
        NumberOfFrames=2,
        WindowCenter="5",
        WindowWidth="5",
        **{sequence: [group(c) for c in (centers if per_frame else centers[:1])]},
    )
    for number, center in enumerate(centers, 1):
        source = read(data, Choice(frame=number))
        values = frames[number - 1] * 2.0 - 100
        expected = ((values - (float(center) - 0.5)) / 4095 + 0.5).clip(0, 1)
        np.testing.assert_allclose(source.image, expected, atol=1e-5)
        assert f"frame {number} of 2" in source.notes
    with pytest.raises(FormatError, match="has 2 frames, --frame must be 1 to 2, got 3"):
        read(data, Choice(frame=3))


def test_padding_is_black_in_monochrome1_and_outside_the_range() -> None:
    pixels = ramp(100, 730, "i2")
    pixels[0] = -32768
    tags = {"PixelPaddingValue": -32768, "PhotometricInterpretation": "MONOCHROME1"}
    source = read(to_bytes(make_dataset(pixels, 16), **tags))
    np.testing.assert_array_equal(source.image[0], 0)
    np.testing.assert_allclose(source.image[1:], 1 - (pixels[1:] - 100) / 630, atol=1e-6)
    assert "padding is black: 16 pixels of -32768" in source.notes


@pytest.mark.parametrize("value", [-2000, 63536])
def test_padding_said_unsigned_of_signed_pixels(value: int) -> None:
    pixels = ramp(0, 1000, "i2")
    pixels[0] = -2000
    dataset = make_dataset(pixels, 16)
    dataset.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    np.testing.assert_allclose(read(to_bytes(dataset)).image[1:], pixels[1:] / 1000, atol=1e-6)


def test_padding_beyond_the_stored_bits() -> None:
    pixels = ramp(0, 4095, "u2")
    pixels[0] = 63536
    source = read(to_bytes(make_dataset(pixels, 12), PixelPaddingValue=63536))
    np.testing.assert_array_equal(source.image[0], 0)
    np.testing.assert_allclose(source.image[1:], UNIT[1:], atol=1e-6)


def test_bits_above_and_below_those_stored_do_not_count() -> None:
    overlay = RAMP | 0x8000
    np.testing.assert_allclose(read(to_bytes(make_dataset(overlay, 12))).image, UNIT, atol=1e-6)
    shifted = (RAMP << 4) | 0xF
    np.testing.assert_allclose(read(to_bytes(make_dataset(shifted, 12), HighBit=15)).image, UNIT, atol=1e-6)


@pytest.mark.parametrize("name", ["RLE", "JPEG-LS", "JPEG 2000", "JPEG lossless"])
def test_the_highest_stored_bit_counts_in_compressed_pixels_too(name: str) -> None:
    shifted = (TWELVE << 4).astype("u2")
    encoders: dict[str, Callable[[], bytes | bytearray]] = {
        "RLE": lambda: rle(shifted.tobytes()[1::2], shifted.tobytes()[::2]),
        "JPEG-LS": lambda: imagecodecs.jpegls_encode(shifted),
        "JPEG 2000": lambda: imagecodecs.jpeg2k_encode(shifted, reversible=True, codecformat="J2K"),
        "JPEG lossless": lambda: imagecodecs.ljpeg_encode(shifted, bitspersample=16),
    }
    frame = encoders[name]()
    dataset = encode(make_dataset(shifted, 12, COMPRESSED[name][2]), frame)
    np.testing.assert_allclose(read(to_bytes(dataset, HighBit=15)).image, TWELVE / 4095, atol=1e-6)


def test_pixels_beyond_what_the_file_declares_are_told() -> None:
    dataset = make_dataset(RAMP, 12)
    dataset.PixelData = dataset.PixelData * 2
    source = read(to_bytes(dataset))
    np.testing.assert_allclose(source.image, UNIT, atol=1e-6)
    assert "128 more bytes of pixels than rows, columns and frames require: ignored" in source.notes


def test_an_unknown_transfer_syntax_is_taken_for_what_the_pixels_are() -> None:
    data = to_bytes(make_dataset(RAMP, 12)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.9.10")
    source = read(data)
    np.testing.assert_allclose(source.image, UNIT, atol=1e-6)
    assert any(note.startswith("unknown transfer syntax 1.2.3.4.5") for note in source.notes)


def test_float_pixels_that_are_no_numbers_are_black() -> None:
    pixels = ramp(0, 5, "f4")
    pixels[0, :4] = np.nan, np.inf, -np.inf, 5
    source = read(to_bytes(make_dataset(pixels)))
    np.testing.assert_array_equal(source.image[0, :4], [0, 0, 0, 1])
    assert "3 pixels are NaN or infinite: black" in source.notes
    assert source.bits == 16


def colour(rgb: NDArray[Any], photometric: str = "RGB", planar: int = 0) -> Dataset:
    dataset = make_dataset(rgb)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, photometric, planar
    dataset.PixelData = (np.moveaxis(rgb, 2, 0) if planar else rgb).tobytes()
    return dataset


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_is_gray_where_its_channels_are_equal_and_else_luminance(planar: int) -> None:
    gray = np.stack([EIGHT] * 3, axis=2)
    source = read(to_bytes(colour(gray, planar=planar)))
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=1e-6)
    assert "colour with equal channels: taken as gray" in source.notes
    real = np.stack([EIGHT, EIGHT[:, ::-1], EIGHT // 2], axis=2)
    source = read(to_bytes(colour(real, planar=planar)))
    np.testing.assert_allclose(source.image, real @ [0.299, 0.587, 0.114] / 255, atol=3e-3)
    assert "colour turned to gray" in source.notes


def test_colour_with_unusual_bits_and_signs() -> None:
    deep = np.stack([TWELVE] * 3, axis=2) << 4
    source = read(to_bytes(colour(deep.astype("u2")), BitsStored=12, HighBit=15))
    np.testing.assert_allclose(source.image, TWELVE / 4095, atol=1e-6)
    source = read(to_bytes(colour(np.stack([EIGHT] * 3, axis=2)), PixelRepresentation=1))
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=1e-6)
    assert "PixelRepresentation is 1: taken as unsigned" in source.notes


@pytest.mark.parametrize("transformed", [False, True])
def test_jpeg_2000_in_ybr_is_turned_into_rgb_once(transformed: bool) -> None:
    rgb = np.stack([EIGHT, EIGHT[:, ::-1], EIGHT // 2], axis=2)
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    frame = imagecodecs.jpeg2k_encode(
        rgb if transformed else ybr, reversible=True, codecformat="J2K", mct=transformed, colorspace="SRGB"
    )
    dataset = colour(rgb, "YBR_RCT" if transformed else "YBR_FULL")
    dataset.file_meta.TransferSyntaxUID = UID(f"{BASE}.90")
    np.testing.assert_allclose(
        read(to_bytes(encode(dataset, frame))).image, rgb @ [0.299, 0.587, 0.114] / 255, atol=0.012
    )


def test_samples_that_contradict_the_photometric_interpretation() -> None:
    rgb = np.stack([EIGHT] * 3, axis=2)
    source = read(to_bytes(colour(rgb), PhotometricInterpretation="MONOCHROME2"))
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=1e-6)
    assert "MONOCHROME2 with 3 samples per pixel: taken as RGB" in source.notes
    source = read(to_bytes(make_dataset(RAMP, 12), PhotometricInterpretation="RGB"))
    np.testing.assert_allclose(source.image, UNIT, atol=1e-6)
    assert "RGB with 1 samples per pixel: taken as MONOCHROME2" in source.notes


def test_a_segmented_palette_that_declares_more_bits_than_it_holds() -> None:
    dataset = make_dataset(EIGHT)
    for name in ("Red", "Green", "Blue"):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        segments = np.array([0, 1, 0, 1, 255, 255], "<u2").tobytes()
        dataset.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", segments)
    source = read(to_bytes(dataset, PhotometricInterpretation="PALETTE COLOR"))
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=1e-6)
    assert "palette taken as one of 8 bits: it declares 16, but no entry is above 255" in source.notes


@pytest.mark.parametrize("bits", [8, 16])
def test_a_gray_palette_is_gray_and_another_luminance(bits: int) -> None:
    entries = np.arange(256) * (1 if bits == 8 else 257)

    def palette(*channels: NDArray[Any]) -> bytes:
        dataset = make_dataset(EIGHT)
        for name, channel in zip(("Red", "Green", "Blue"), channels, strict=True):
            item = lut(0, channel, bits)
            dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", item.LUTDescriptor)
            dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", item.LUTData)
        return to_bytes(dataset, PhotometricInterpretation="PALETTE COLOR")

    source = read(palette(entries, entries, entries))
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=1e-6)
    assert "colour with equal channels: taken as gray" in source.notes
    source = read(palette(entries, entries[::-1], entries))
    np.testing.assert_allclose(source.image, (EIGHT * 0.413 + (255 - EIGHT.astype(int)) * 0.587) / 255, atol=3e-3)
    assert "colour turned to gray" in source.notes


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PhotometricInterpretation": "HSV"}, "is HSV, must be MONOCHROME1, MONOCHROME2, PALETTE COLOR"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is PALETTE COLOR without its palette"),
        ({"PixelData": b"\0" * 10}, "is cut off: 10 of 128 bytes of pixels"),
        ({"Rows": None}, "is not a readable DICOM image: it has no Rows"),
        ({"PixelData": None}, "is DICOM without pixels .Computed Radiography Image Storage.*or cut off before them"),
        ({"PixelData": b""}, "is DICOM without pixels"),
        ({"BitsAllocated": 24, "BitsStored": 12, "PixelData": bytes(192)}, "is not a readable DICOM image"),
        ({"Rows": 65535, "Columns": 65535}, "is 65535×65535, must be at least 1×1 and at most 268 megapixels"),
        ({"BitsAllocated": 12}, "is not a readable DICOM image"),
    ],
)
def test_what_cannot_be_read(tags: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(to_bytes(make_dataset(RAMP, 12), **tags))


@pytest.mark.parametrize(
    ("tags", "mm"),
    [
        ({}, None),
        ({"PixelSpacing": [0.5, 0.5]}, 0.5),
        ({"PixelSpacing": [0.4, 0.9]}, 0.6),
        ({"ImagerPixelSpacing": [0.14, 0.14]}, 0.14),
        ({"ImagerPixelSpacing": [0.15, 0.15], "EstimatedRadiographicMagnificationFactor": 1.5}, 0.1),
        ({"ImagerPixelSpacing": [0.14, 0.14], "PixelSpacing": [0.12, 0.12]}, 0.12),
    ],
)
def test_the_size_of_pixels_in_the_patient(tags: dict[str, object], mm: float | None) -> None:
    assert read(to_bytes(make_dataset(RAMP, 12), **tags)).pixel_mm == (None if mm is None else pytest.approx(mm))


@pytest.mark.parametrize("spacing", [[0, 0], [-1, 1], [1000, 1000]])
def test_an_absurd_size_of_pixels_is_ignored(spacing: list[float]) -> None:
    source = read(to_bytes(make_dataset(RAMP, 12), PixelSpacing=spacing))
    assert source.pixel_mm is None
    assert any("mm: ignored" in note for note in source.notes)
