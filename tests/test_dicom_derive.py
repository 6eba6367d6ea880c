"""DICOM images of results: what they keep of their source, and what marks them as derived."""

from __future__ import annotations

import io
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from client.dicom import Compression
from client.dicom.derive import derive
from client.dicom.files import compress, write_dicom
from client.dicom.uncertainty import map_uncertainty
from client.files import smaller
from client.formats.source import Choice, FileError, FormatError, Source
from client.pictures import CAUTION
from tests.dicom_files import encode, lut, make_radiograph, make_result, read_original, to_bytes

CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)


def derived_from(dataset: Dataset, *, marked: bool = False, seed: int = 7, **tags: object) -> Dataset:
    source = read_original(to_bytes(dataset, **tags))
    return derive(source, replace(make_result(source), seed=seed), marked=marked)


def written(dataset: Dataset) -> bytes:
    with TemporaryDirectory() as folder:
        write_dicom(Path(folder, "a.dcm"), dataset)
        return Path(folder, "a.dcm").read_bytes()


@pytest.mark.parametrize("kind", CLASSES)
def test_patient_and_study_are_the_sources(kind: UID) -> None:
    source = make_radiograph(kind)
    source.FrameOfReferenceUID = "1.2.3"
    result = derived_from(source)
    kept = ("SOPClassUID", "Modality", "PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "AccessionNumber")
    for keyword in (*kept, "FrameOfReferenceUID", "InstanceNumber", "BurnedInAnnotation"):
        assert result[keyword].value == source[keyword].value


def test_it_says_that_it_is_derived_from_what_and_how() -> None:
    source = make_radiograph()
    result = derived_from(source)
    assert list(result.ImageType) == ["DERIVED", "SECONDARY"]
    (reference,) = result.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == source.SOPClassUID
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert result.DerivationCodeSequence[0].CodeValue == "113085"
    assert "latent diffusion" in result.DerivationDescription
    for keyword in ("SeriesDescription", "ImageComments", "DerivationDescription"):
        assert CAUTION in str(result[keyword].value)
    assert result.SeriesDescription.endswith("Thorax p.a.")
    (equipment,) = result.ContributingEquipmentSequence
    assert list(equipment.SoftwareVersions) == [version("cxr-superres"), "0123456789abcdef" * 4]
    assert equipment.Manufacturer == "cxr-superres"
    for word in ("preset=best", "seed=7", "steps=", "sampler=ddim", "model=0123456789abcdef"):
        assert word in equipment.ContributionDescription


def test_what_is_said_of_a_source_that_is_derived_itself_stays() -> None:
    source = make_radiograph()
    first = read_original(written(derived_from(source)))
    again = derive(first, make_result(first))
    assert len(again.ContributingEquipmentSequence) == 2
    assert len(again.DerivationCodeSequence) == 2
    assert again.DerivationDescription.count("latent diffusion") == 2


def test_uids_are_those_of_the_job() -> None:
    source, other = make_radiograph(), make_radiograph(inverted=True)
    one, again = derived_from(source), derived_from(source)
    assert written(one) == written(again)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    beside, seeded = derived_from(other), derived_from(source, seed=8)
    marked = derived_from(source, marked=True)
    assert len({d.SOPInstanceUID for d in (source, one, beside, seeded, marked)}) == 5
    assert one.SeriesInstanceUID == beside.SeriesInstanceUID, "images of a run share a series"
    assert len({d.SeriesInstanceUID for d in (source, one, seeded, marked)}) == 4
    assert one.SOPInstanceUID.is_valid and one.SeriesInstanceUID.is_valid
    first = read_original(to_bytes(source))
    another = replace(make_result(first), model="f" * 64)
    assert derive(first, another).SOPInstanceUID != one.SOPInstanceUID


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_pixels_are_in_the_sources_terms(bits: int, inverted: bool) -> None:
    source = make_radiograph(bits=bits, inverted=inverted)
    source.RescaleSlope, source.RescaleIntercept = 2, -1
    result = derived_from(source)
    kept = ("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    for keyword in (*kept, "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        assert result[keyword].value == source[keyword].value
    assert (result.Rows, result.Columns) == (4 * source.Rows, 4 * source.Columns)
    assert result.PixelSpacing == [0.14, 0.14]
    assert result.ImagerPixelSpacing == [0.15, 0.15]
    assert result.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_without_a_window_it_is_that_of_the_sources_range() -> None:
    source = make_radiograph()
    result = derived_from(source, WindowCenter=None, WindowWidth=None)
    assert (result.WindowCenter, result.WindowWidth) == (2048, 4096)


def test_a_window_that_was_asked_for_replaces_the_files() -> None:
    dataset = make_radiograph()
    dataset.VOILUTSequence = [lut(0, np.arange(4096), 12)]
    source = read_original(to_bytes(dataset), Choice(window=(1000, 500)))
    result = derive(source, make_result(source))
    assert (result.WindowCenter, result.WindowWidth) == (1000, 500)
    assert "VOILUTSequence" not in result


def test_shutters_are_where_they_were() -> None:
    result = derived_from(
        make_radiograph(),
        ShutterShape="RECTANGULAR",
        ShutterLeftVerticalEdge=1,
        ShutterRightVerticalEdge=64,
        CenterOfCircularCollimator=[24, 32],
        RadiusOfCircularCollimator=10,
    )
    assert (result.ShutterLeftVerticalEdge, result.ShutterRightVerticalEdge) == (2, 254)
    assert result.CenterOfCircularCollimator == [94, 126]
    assert result.RadiusOfCircularCollimator == 40


def test_what_belongs_to_the_sources_pixels_is_left_out() -> None:
    source = make_radiograph()
    source.add_new(0x60003000, "OW", b"\0\0")
    source.add_new(0x00110010, "LO", "MAKER")
    source.add_new(0x00111001, "LO", "secret")
    result = derived_from(source, SmallestImagePixelValue=0, IconImageSequence=[], InstanceCreationDate="20200101")
    for tag in (0x60003000, 0x00110010, 0x00111001, "SmallestImagePixelValue", "IconImageSequence"):
        assert tag not in result


def test_a_lossy_source_stays_one() -> None:
    source = make_radiograph()
    source.LossyImageCompression, source.LossyImageCompressionRatio = "01", "10"
    source.LossyImageCompressionMethod = "ISO_15444_1"
    result = derived_from(source)
    assert (result.LossyImageCompression, result.LossyImageCompressionRatio) == ("01", 10)
    silent = make_radiograph(bits=8)
    frame = imagecodecs.jpeg8_encode(silent.pixel_array, level=95)
    silent.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.50")
    result = derived_from(encode(silent, frame))
    assert (result.LossyImageCompression, result.LossyImageCompressionMethod) == ("01", "ISO_10918_1")


def test_a_big_endian_table_is_still_one() -> None:
    source = make_radiograph()
    pixels = source.pixel_array
    source.VOILUTSequence = [lut(0, np.arange(4096), 12)]
    source.VOILUTSequence[0]["LUTData"].value = np.arange(4096).astype(">u2").tobytes()
    source.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    source.PixelData = pixels.astype(">u2").tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, source, little_endian=False, implicit_vr=False, enforce_file_format=True)
    first = read_original(out.getvalue())
    result = read_original(written(derive(first, make_result(first))))
    assert first.original is not None and result.original is not None
    np.testing.assert_array_equal(first.original.grays, result.original.grays)


def test_a_marker_is_burnt_in_and_said() -> None:
    plain, marked = derived_from(make_radiograph()), derived_from(make_radiograph(), marked=True)
    assert marked.BurnedInAnnotation == "YES"
    changed = np.flatnonzero((plain.pixel_array != marked.pixel_array).any(axis=1))
    assert changed.min() > 0.8 * plain.Rows
    assert {int(v) for v in np.unique(marked.pixel_array[-2])} >= {int(marked.pixel_array[-2, 128])}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("compression", ["jpeg2000", "jpeg-ls"])
def test_compression_loses_nothing(compression: Compression, signed: bool) -> None:
    source = make_radiograph()
    if signed:
        source.PixelData, source.PixelRepresentation = (source.pixel_array.astype("i2") - 2048).tobytes(), 1
    plain, compressed = derived_from(source), derived_from(source)
    compress(compressed, compression)
    assert compressed.file_meta.TransferSyntaxUID.is_compressed
    assert compressed.SOPInstanceUID == plain.SOPInstanceUID
    first, second = (read_original(written(dataset)).original for dataset in (plain, compressed))
    assert first is not None and second is not None
    np.testing.assert_array_equal(first.stored, second.stored)


def test_a_source_that_was_made_smaller_keeps_its_size_in_mm() -> None:
    source = smaller(read_original(to_bytes(make_radiograph(shape=(96, 128)))), 4, [])
    result = derive(source, make_result(source))
    assert (result.Rows, result.Columns) == (96, 128)
    assert result.PixelSpacing == [0.56, 0.56]
    assert "reduction by 4" in result.DerivationDescription


def test_the_uncertainty_is_a_parametric_map_of_the_same_geometry() -> None:
    source = read_original(to_bytes(make_radiograph(), WindowCenter=2048, WindowWidth=4096))
    result = make_result(source)
    image = derive(source, result)
    assert source.original is not None
    found = map_uncertainty(image, source.original, result)
    assert found.SOPClassUID.name == "Parametric Map Storage"
    assert (found.Rows, found.Columns, found.StudyInstanceUID) == (image.Rows, image.Columns, image.StudyInstanceUID)
    values = np.frombuffer(found.FloatPixelData, "<f4")
    np.testing.assert_allclose(values, 0.02 * 4095, rtol=0.01)
    (measures,) = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.PixelSpacing == image.PixelSpacing
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
    assert written(found) == written(map_uncertainty(image, source.original, result))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "is CT Image Storage, must be CR, DX or single-frame"),
    ({"StudyInstanceUID": None}, "has no StudyInstanceUID"),
    ({"SeriesInstanceUID": "not a UID"}, r"invalid SeriesInstanceUID \('not a UID'\)"),
]


@pytest.mark.parametrize(("tags", "message"), REFUSED)
def test_sources_that_are_refused(tags: dict[str, Any], message: str) -> None:
    with disable_value_validation():
        data = to_bytes(make_radiograph(), **tags)
    with pytest.raises(FormatError, match=message):
        read_original(data)


def test_invalid_values_of_the_source_are_kept_without_a_word() -> None:
    with disable_value_validation():
        data = to_bytes(make_radiograph(), PatientBirthDate="once", PatientID="1" * 70)
    source = read_original(data)
    assert b"once" in written(derive(source, make_result(source)))


def test_several_frames_and_colour_are_refused() -> None:
    frames = make_radiograph(SecondaryCaptureImageStorage)
    frames.NumberOfFrames, frames.PixelData = 2, 2 * frames.PixelData
    with pytest.raises(FormatError, match="has 2 frames, must have one"):
        read_original(to_bytes(frames))
    colour = make_radiograph(SecondaryCaptureImageStorage, bits=8)
    colour.SamplesPerPixel, colour.PhotometricInterpretation, colour.PlanarConfiguration = 3, "RGB", 0
    colour.PixelData = 3 * colour.PixelData
    with pytest.raises(FormatError, match="is RGB, must be MONOCHROME1 or 2"):
        read_original(to_bytes(colour))


def test_a_source_without_what_it_needs() -> None:
    source = read_original(to_bytes(make_radiograph()))
    without: Source = replace(source, original=None)
    with pytest.raises(ValueError, match="original"):
        derive(without, make_result(source))


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(FileError, match="out.dcm' cannot be written"):
        write_dicom(tmp_path / "a" / "out.dcm", derived_from(make_radiograph()))
