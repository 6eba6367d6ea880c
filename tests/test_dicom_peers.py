"""Derived DICOM images in the hands of others: dicom3tools, DCMTK and Orthanc."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from benchmarks.orthanc import ORTHANC, Orthanc
from client.dicom import Compression
from client.dicom.derive import derive
from client.dicom.files import compress, write_dicom
from client.dicom.uncertainty import map_uncertainty
from tests.dicom_files import make_radiograph, make_result, read_original, to_bytes

needs_dciodvfy = pytest.mark.skipif(
    not shutil.which("dciodvfy"), reason="there is no dciodvfy: apt-get install dicom3tools"
)
needs_dcmtk = pytest.mark.skipif(not shutil.which("dcm2pnm"), reason="there is no dcm2pnm: apt-get install dcmtk")
needs_orthanc = pytest.mark.skipif(not ORTHANC, reason="there is no Orthanc: apt-get install orthanc")
CLASSES = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "SC": SecondaryCaptureImageStorage,
}


def run(*command: str | Path) -> str:
    """What a command says, in both of its streams; it must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, encoding="latin-1", check=False)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    return said


def write(folder: Path, source: Dataset, compression: Compression | None = None) -> tuple[Path, Path, Path]:
    """Write a source, its result and the map of its uncertainty."""
    paths = folder / "source.dcm", folder / "result.dcm", folder / "map.dcm"
    data = to_bytes(source)
    paths[0].write_bytes(data)
    read = read_original(data)
    assert read.original is not None
    result = make_result(read, noise=0.002)
    derived = derive(read, result)
    write_dicom(paths[2], map_uncertainty(derived, read.original, result))
    if compression is not None:
        compress(derived, compression)
    write_dicom(paths[1], derived)
    return paths


@needs_dciodvfy
@pytest.mark.parametrize("compression", [None, "jpeg2000", "jpeg-ls"])
@pytest.mark.parametrize("kind", CLASSES)
def test_dciodvfy_finds_no_error(kind: str, compression: Compression | None, tmp_path: Path) -> None:
    paths = write(tmp_path, make_radiograph(CLASSES[kind]), compression)
    for path in paths:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
        assert [line for line in said.splitlines() if line.startswith("Error")] == [], path.name


@needs_dcmtk
@pytest.mark.parametrize("compression", [None, "jpeg2000", "jpeg-ls"])
def test_dcmdump_reads_it(compression: Compression | None, tmp_path: Path) -> None:
    _, result, uncertainty = write(tmp_path, make_radiograph(), compression)
    assert r"DERIVED\SECONDARY" in run("dcmdump", result)
    assert "=ParametricMapStorage" in run("dcmdump", uncertainty)


@needs_dcmtk
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dcm2pnm_shows_what_it_shows_of_the_source(bits: int, inverted: bool, tmp_path: Path) -> None:
    pictures = []
    for path in write(tmp_path, make_radiograph(bits=bits, inverted=inverted))[:2]:
        run("dcm2pnm", "+Wi", "1", path, path.with_suffix(".pgm"))
        pictures.append(cv2.imread(str(path.with_suffix(".pgm")), cv2.IMREAD_GRAYSCALE).astype(np.float32))
    difference = np.abs(cv2.resize(pictures[1], (64, 48), interpolation=cv2.INTER_AREA) - pictures[0])
    assert difference.mean() < 1.5


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.mark.slow
@needs_orthanc
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_orthanc_shows_what_it_shows_of_the_source(orthanc: Orthanc, kind: str, inverted: bool, tmp_path: Path) -> None:
    paths = write(tmp_path, make_radiograph(CLASSES[kind], inverted=inverted))
    source, result, uncertainty = (orthanc.store(path.read_bytes()) for path in paths)
    for what in ("preview", "rendered"):
        first, second = (orthanc.picture(instance, what).astype(np.float32) for instance in (source, result))
        difference = np.abs(cv2.resize(second, (64, 48), interpolation=cv2.INTER_AREA) - first)
        assert difference.mean() < 1.5, what
    tags = orthanc.tags(result)
    assert tags["PatientName"] == "Röntgen^Anna"
    assert tags["StudyInstanceUID"] == orthanc.tags(source)["StudyInstanceUID"]
    assert "not for diagnosis" in tags["SeriesDescription"]
    assert orthanc.tags(uncertainty)["StudyInstanceUID"] == tags["StudyInstanceUID"]
    assert {UID(orthanc.tags(i)["SeriesInstanceUID"]).is_valid for i in (source, result, uncertainty)} == {True}


@pytest.mark.slow
@needs_orthanc
@needs_dcmtk
def test_storescu_sends_it(orthanc: Orthanc, tmp_path: Path) -> None:
    _, result, _ = write(tmp_path, make_radiograph())
    run("storescu", "127.0.0.1", str(orthanc.dicom), result)
