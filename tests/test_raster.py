"""PNG and JPEG."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps

from client.formats import raster
from client.formats.source import Choice, FormatError, Source

RAMP = np.tile(np.arange(64), (48, 1))
EIGHT, SIXTEEN = (RAMP * 4).astype("u1"), (RAMP * 1040).astype("u2")


def opencv(pixels: NDArray[Any], suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def pillow(image: PILImage.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(data: bytes, choice: Choice | None = None) -> Source:
    notes: list[str] = []
    source = raster.read(data, choice or Choice(), notes)
    return Source(source.image, source.bits, tuple(notes))


@pytest.mark.parametrize("pixels", [EIGHT, SIXTEEN], ids=["8 bit", "16 bit"])
def test_gray_png(pixels: NDArray[Any]) -> None:
    source = read(opencv(pixels))
    np.testing.assert_allclose(source.image, pixels / np.iinfo(pixels.dtype).max, atol=1e-6)
    assert source.image.dtype == np.float32
    assert (source.bits, source.notes) == (8 * pixels.itemsize, ())


def test_jpeg() -> None:
    source = read(opencv(EIGHT, ".jpg"))
    np.testing.assert_allclose(source.image, EIGHT / 255, atol=0.05)
    assert (source.bits, source.notes) == (8, ())


@pytest.mark.parametrize("pixels", [EIGHT, SIXTEEN], ids=["8 bit", "16 bit"])
def test_colour_becomes_gray_in_its_depth_and_is_told(pixels: NDArray[Any]) -> None:
    top = np.iinfo(pixels.dtype).max
    rgb = np.stack([pixels, pixels[:, ::-1], pixels // 2], axis=2)
    source = read(opencv(np.ascontiguousarray(rgb[..., ::-1])))
    np.testing.assert_allclose(source.image, rgb @ [0.299, 0.587, 0.114] / top, atol=3e-3)
    assert (source.bits, source.notes) == (8 * pixels.itemsize, ("colour turned to gray",))
    source = read(opencv(np.stack([pixels] * 3, axis=2)))
    np.testing.assert_allclose(source.image, pixels / top, atol=1e-6)
    assert source.notes == ("colour with equal channels: taken as gray",)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_other_kinds_of_png(mode: str) -> None:
    gray = PILImage.fromarray(np.where(RAMP > 31, 255, 0).astype("u1"))
    source = read(pillow(gray.convert(mode)))
    np.testing.assert_array_equal(source.image, RAMP > 31)
    assert ("transparency ignored" in source.notes) == (mode in ("LA", "RGBA"))


def test_white_in_cmyk_is_white() -> None:
    data = pillow(PILImage.new("RGB", (16, 16), "white").convert("CMYK"), "JPEG")
    np.testing.assert_allclose(read(data).image, 1, atol=0.02)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_heeded_and_told(kind: str, orientation: int) -> None:
    pixels = np.zeros((48, 64), np.uint8)
    pixels[:16, :16] = 255
    exif = PILImage.Exif()
    exif[274] = orientation
    data = pillow(PILImage.fromarray(pixels), kind, exif=exif)
    with PILImage.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    source = read(data)
    np.testing.assert_allclose(source.image, upright / 255, atol=0.05)
    told = f"turned upright: the file's orientation is {orientation}"
    assert (told in source.notes) == (orientation > 1)


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """Put a chunk behind the header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_text_of_any_size(kind: bytes) -> None:
    text = bytes(100_000_000 if kind == b"zTXt" else 10_000_000)
    content = {
        b"tEXt": b"Comment\0" + text.replace(b"\0", b"x"),
        b"zTXt": b"Comment\0\0" + zlib.compress(text),
        b"iTXt": b"Comment\0\0\0\0\0" + text.replace(b"\0", b"x"),
    }[kind]
    np.testing.assert_allclose(read(with_chunk(opencv(EIGHT), kind, content)).image, EIGHT / 255, atol=1e-6)


def test_a_huge_image_is_refused_before_it_is_decoded() -> None:
    data = bytearray(opencv(EIGHT))
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    with pytest.raises(FormatError, match="is 100000×100000, must be at least 1×1 and at most 268 megapixels"):
        read(bytes(data))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_a_file_that_is_cut_off(suffix: str, colour: bool, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3) if colour else (40, 40), dtype=np.uint8)
    data = opencv(noise, suffix)
    with pytest.raises(FormatError, match="damaged"):
        read(data[: int(len(data) * share)])
    assert capfd.readouterr() == ("", "")


def test_what_goes_with_other_formats_is_refused() -> None:
    with pytest.raises(FormatError, match="must be a DICOM file for --window"):
        read(opencv(EIGHT), Choice(window=(1, 2)))
    with pytest.raises(FormatError, match="must be a TIFF or .npy file for --page"):
        read(opencv(EIGHT), Choice(page=2))
    with pytest.raises(FormatError, match="must be a DICOM file for --frame"):
        read(opencv(EIGHT), Choice(frame=2))
