"""Files: PNG, JPEG, TIFF and DICOM in, PNG out, and one clear line for what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEGLSLossless

from pipeline.files import FileError, list_images, read_image, write_png


def gradient(dtype: type, height: int = 12, width: int = 10) -> NDArray[Any]:
    top = np.iinfo(dtype).max
    return np.linspace(0, top, height * width).reshape(height, width).astype(dtype)


def write_dicom(path: Path, pixels: NDArray[Any], **tags: object) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_files_keep_their_values_and_depth(tmp_path: Path, dtype: type, suffix: str) -> None:
    pixels = gradient(dtype)
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), pixels)
    source = read_image(path)
    assert (source.bits, source.notes) == (pixels.dtype.itemsize * 8, ())
    assert source.image.dtype == np.float32
    np.testing.assert_allclose(source.image, pixels / np.iinfo(dtype).max, atol=1e-6)


def test_jpeg(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), gradient(np.uint8))
    source = read_image(tmp_path / "a.jpg")
    assert (source.bits, source.notes) == (8, ())
    np.testing.assert_allclose(source.image, gradient(np.uint8) / 255, atol=0.05)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_becomes_gray_and_says_so(tmp_path: Path, dtype: type) -> None:
    pixels = np.stack([gradient(dtype), gradient(dtype)[::-1], gradient(dtype)], axis=2)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    source = read_image(tmp_path / "a.png")
    assert source.image.ndim == 2
    assert source.notes == ("colour turned to gray",)


def test_gray_stored_as_colour_is_gray(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.stack([gradient(np.uint8)] * 3, axis=2))
    source = read_image(tmp_path / "a.png")
    assert source.notes == ()
    np.testing.assert_allclose(source.image, gradient(np.uint8) / 255, atol=1e-6)


def test_the_real_radiograph() -> None:
    path = get_testdata_file("RG1_UNCR.dcm")
    assert path is not None
    source = read_image(Path(path))
    assert (source.image.shape, source.bits) == ((1955, 1841), 16)
    assert "MONOCHROME1" in source.notes[0]
    assert 0 <= source.image.min() < source.image.max() <= 1
    spine, air = source.image[900:1100, 900:950].mean(), source.image[100:200, 50:150].mean()
    assert spine > air, "dense tissue is bright once MONOCHROME1 is inverted"


def test_dicom_window_and_rescale(tmp_path: Path) -> None:
    pixels = gradient(np.uint16) // 16
    path = write_dicom(
        tmp_path / "a.dcm", pixels, RescaleSlope="2", RescaleIntercept="-100", WindowCenter="2000", WindowWidth="1000"
    )
    values = pixels * 2.0 - 100
    # DICOM PS3.3 C.11.2.1.2.1, linear
    expected = np.clip((values - (2000 - 0.5)) / (1000 - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(path).image, expected, atol=1e-5)


@pytest.mark.parametrize("tags", [{"WindowCenter": None}, {"WindowCenter": "2000"}, {"WindowWidth": "10"}])
def test_dicom_with_half_a_window_has_none(tmp_path: Path, tags: dict[str, object]) -> None:
    pixels = gradient(np.uint16) // 32
    image = read_image(write_dicom(tmp_path / "a.dcm", pixels, **tags)).image
    np.testing.assert_allclose(image, (pixels - pixels.min()) / np.ptp(pixels), atol=1e-6)


def test_dicom_sigmoid_window(tmp_path: Path) -> None:
    pixels = gradient(np.uint16) // 16
    tags = {"WindowCenter": "2000", "WindowWidth": "800", "VOILUTFunction": "SIGMOID"}
    expected = 1 / (1 + np.exp(-4 * (pixels - 2000.0) / 800))
    np.testing.assert_allclose(read_image(write_dicom(tmp_path / "a.dcm", pixels, **tags)).image, expected, atol=1e-3)


def test_dicom_voi_lut(tmp_path: Path) -> None:
    pixels = gradient(np.uint16) // 16
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    lut = (np.arange(4096.0) ** 2 / 4095**2 * 65535).astype(np.uint16)
    table.add_new("LUTData", "OW", lut.tobytes())
    path = write_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=[table])
    np.testing.assert_allclose(read_image(path).image, lut[pixels] / 65535, atol=1e-5)


def test_dicom_without_a_window_uses_its_whole_range(tmp_path: Path) -> None:
    pixels = gradient(np.uint16) // 32 + 7
    image = read_image(write_dicom(tmp_path / "a.dcm", pixels)).image
    np.testing.assert_allclose(image, (pixels - pixels.min()) / np.ptp(pixels), atol=1e-6)


def test_dicom_monochrome1_is_inverted(tmp_path: Path) -> None:
    pixels = gradient(np.uint16) // 16
    plain = read_image(write_dicom(tmp_path / "a.dcm", pixels)).image
    inverted = read_image(write_dicom(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1")).image
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


def test_constant_dicom_is_black(tmp_path: Path) -> None:
    image = read_image(write_dicom(tmp_path / "a.dcm", np.full((4, 4), 9, np.uint16))).image
    np.testing.assert_array_equal(image, np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR, supported are MONOCHROME1 and MONOCHROME2"),
        ({"NumberOfFrames": "3"}, "has 3 frames, supported is one"),
        ({"PixelData": b"\0" * 10}, "not a readable DICOM image"),
        ({"Rows": None}, "not a readable DICOM image"),
    ],
)
def test_dicom_that_cannot_be_read(tmp_path: Path, tags: dict[str, object], message: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", gradient(np.uint16), **tags)
    with pytest.raises(FileError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compressed_dicom_without_a_decoder_names_it(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", gradient(np.uint16))
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 16])
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    with pytest.raises(FileError, match="not a readable DICOM image"):
        read_image(path)


def test_16_bit_tiff_that_stores_white_as_zero(tmp_path: Path) -> None:
    pixels = gradient(np.uint16)
    PILImage.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={PHOTOMETRIC_INTERPRETATION: 0})
    source = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(source.image, 1 - pixels / 65535, atol=1e-6)
    assert source.notes == ("inverted: the TIFF stores white as 0",)


@pytest.mark.parametrize("data", [b"v/1\x01" + b"\0" * 60, b"P5\n999999 999999\n255\n", b"BM" + b"\x7f" * 60])
def test_headers_that_promise_too_much(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(FileError, match="is not a readable PNG, JPEG, TIFF or DICOM"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated_file(
    tmp_path: Path, suffix: str, colour: bool, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3) if colour else (40, 40), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    data = cv2.imencode(suffix, noise)[1].tobytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FileError, match=str(path)) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "is empty"), (b"hello, I am text", "is not a readable PNG, JPEG, TIFF or DICOM")],
)
def test_not_an_image(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_image(path)


def test_float_tiff_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.tif"), np.zeros((4, 4), np.float32))
    with pytest.raises(FileError, match="float32 pixels, supported are 8 and 16 bits"):
        read_image(tmp_path / "a.tif")


def test_folder_listing(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "notes.txt", "c.tif"):
        (tmp_path / name).write_bytes(b"x" * 200)
    write_dicom(tmp_path / "IM0001", gradient(np.uint16))
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["IM0001", "a.jpeg", "b.PNG", "c.tif"]


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no images"):
        list_images(tmp_path)


@pytest.mark.parametrize("bits", [8, 16])
def test_png_round_trip_with_text(tmp_path: Path, bits: int) -> None:
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "new" / "a.png"
    write_png(path, image, bits, {"Description": "derived"})
    source = read_image(path)
    assert source.bits == bits
    np.testing.assert_allclose(source.image, image, atol=0.5 / (2**bits - 1) + 1e-6)
    with PILImage.open(path) as picture:
        assert picture.text["Description"] == "derived"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_png(path, np.zeros((4, 4), np.float32))
    before = path.read_bytes()

    def full_disk(_self: PILImage.Image, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PILImage.Image, "save", full_disk)
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        write_png(path, np.ones((4, 4), np.float32))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
