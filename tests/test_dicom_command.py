"""The command writes DICOM: from real files through the real server, and one line for what it does not take."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, SecondaryCaptureImageStorage

from client.files import MAX_BYTES
from client.formats.dicom import MAX_INFLATED
from client.upscale import main
from pipeline.method.reduction import reduce
from tests.conftest import RunningServer
from tests.dicom_files import make_radiograph, read_original, to_bytes


@pytest.fixture
def at(server: RunningServer) -> list[str]:
    return ["--url", server.url("grpc"), "--steps", "2"]


def save(path: Path, dataset: Dataset | None = None, **tags: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(to_bytes(dataset or make_radiograph(), **tags))
    return path


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_one_image(at: list[str], tmp_path: Path, bits: int) -> None:
    path, out = save(tmp_path / "scan.dcm", make_radiograph(bits=bits, inverted=True)), tmp_path / "out.dcm"
    assert main([str(path), "-o", str(out), *at]) == 0
    source, result = pydicom.dcmread(path), pydicom.dcmread(out)
    assert (result.Rows, result.Columns, result.BitsStored) == (192, 256, bits)
    equipment = result.ContributingEquipmentSequence[0]
    found = re.search(r"found=(\w+)", equipment.ContributionDescription)
    assert found is not None
    name = found[1] if found[1] != "other" else "area"
    again = reduce(result.pixel_array.astype(np.float32), name)  # type: ignore[arg-type]
    assert np.abs(again.clip(0, 2**bits - 1) - source.pixel_array).max() <= 1
    first = out.read_bytes()
    assert main([str(path), "-o", str(out), "--force", *at]) == 0
    assert out.read_bytes() == first, "the same job gives the same file"


def test_a_folder_gets_a_series(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        dataset = make_radiograph(inverted=number == 2)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
        save(tmp_path / "scans" / f"{number}.dcm", dataset)
    np.save(tmp_path / "scans" / "a.npy", np.zeros((8, 8)))
    folder = tmp_path / "out"
    options = ["--format", "dicom", "--compress", "jpeg-ls", "--burn-in"]
    assert main([str(tmp_path / "scans"), "-o", str(folder), *options, *at]) == 1
    assert "a.npy' is NPY, must be DICOM for --format dicom" in capsys.readouterr().err
    results = [pydicom.dcmread(folder / f"{number}_x4.dcm") for number in (1, 2)]
    assert len({result.SeriesInstanceUID for result in results}) == 1
    assert {result.BurnedInAnnotation for result in results} == {"YES"}
    assert {result.file_meta.TransferSyntaxUID.name for result in results} == {"JPEG-LS Lossless Image Compression"}


def test_the_uncertainty_is_beside_it(at: list[str], tmp_path: Path) -> None:
    path, out, doubt = save(tmp_path / "scan.dcm"), tmp_path / "out.dcm", tmp_path / "doubt.dcm"
    assert main([str(path), "-o", str(out), "--uncertainty", str(doubt), *at]) == 0
    found, image = pydicom.dcmread(doubt), pydicom.dcmread(out)
    assert found.SOPClassUID.name == "Parametric Map Storage"
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
    values = np.frombuffer(found.FloatPixelData, "<f4")
    assert 0 < values.mean() < 4096


def test_a_larger_image_is_offered_to_be_made_smaller(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = save(tmp_path / "scan.dcm", make_radiograph(shape=(8, 2052))), tmp_path / "out.dcm"
    assert main([str(path), "-o", str(out), *at]) == 1
    assert "2–2048 pixels per side, got 2052×8 (--downscale N makes it smaller)" in capsys.readouterr().err
    assert main([str(path), "-o", str(out), "--downscale", "2", *at]) == 0
    assert pydicom.dcmread(out).PixelSpacing == [0.28, 0.28]


def bomb() -> bytes:
    """A deflated data set of a few MB with more than may be inflated."""
    dataset = make_radiograph()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = to_bytes(dataset)
    start = len(whole) - len(zlib_part(whole))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(2**24)
    parts = [deflate.compress(zeros) for _ in range(MAX_INFLATED // len(zeros) + 2)]
    return whole[:start] + b"".join(parts) + deflate.flush()


def zlib_part(whole: bytes) -> bytes:
    """What follows the file's meta information."""
    length = int.from_bytes(whole[140:144], "little")
    return whole[144 + length :]


def colour() -> bytes:
    dataset = make_radiograph(SecondaryCaptureImageStorage, bits=8)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.PixelData = 3 * dataset.PixelData
    return to_bytes(dataset)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "half": (lambda: to_bytes(make_radiograph())[:4000], "is cut off: "),
    "bomb": (bomb, "inflates to more than 1 GiB"),
    "no study": (lambda: to_bytes(make_radiograph(), StudyInstanceUID=None), "has no StudyInstanceUID"),
    "colour": (colour, "is RGB, must be MONOCHROME1 or 2 for --format dicom"),
    "class": (
        lambda: to_bytes(make_radiograph(), SOPClassUID="1.2.840.10008.5.1.4.1.1.2"),
        "is CT Image Storage, must be CR, DX or single-frame Secondary Capture",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, message = BAD[name]
    path, out = tmp_path / "scan.dcm", tmp_path / "out.dcm"
    path.write_bytes(make())
    assert main([str(path), "-o", str(out), *at]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: '{path}' ") and message in line
    assert not out.exists()


def test_a_huge_file_is_not_read(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "scan.dcm")
    with open(path, "ab") as file:
        file.truncate(MAX_BYTES + 1)
    assert main([str(path), "-o", str(tmp_path / "out.dcm"), *at]) == 1
    assert "has 4.0 GiB, must have at most 4 GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compress", "jpeg-ls"], "--compress: requires --format dicom"),
        (["--burn-in"], "--burn-in: requires --format dicom"),
        (["-o", "out.png", "--format", "dicom"], "-o: must end in .dcm for --format dicom, got 'out.png'"),
        (["--format", "dicom", "--name", "{stem}.png"], "--name: must be a file name that ends in .dcm"),
        (["--uncertainty", "doubt.dcm"], "--uncertainty: must end in .png, got 'doubt.dcm'"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "scan.dcm"), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_kept_of_a_source_is_what_was_stored(tmp_path: Path) -> None:
    dataset = make_radiograph()
    source = read_original(save(tmp_path / "a.dcm", dataset).read_bytes())
    assert source.original is not None
    np.testing.assert_array_equal(source.original.stored, dataset.pixel_array)
