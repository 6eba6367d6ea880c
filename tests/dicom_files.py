"""Small DICOM files for tests."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.formats import dicom
from client.formats.source import Choice, Source
from client.results import Upscaled
from pipeline.method.images import upsample
from pipeline.method.options import Options
from pipeline.method.reduction import History, faithful_to, reduce
from pipeline.presets import DEFAULT
from pipeline.spec import SCALE, ReductionName


def make_dataset(pixels: NDArray[Any], bits: int | None = None, syntax: UID | str = ExplicitVRLittleEndian) -> Dataset:
    """A one-frame MONOCHROME2 image of integers or floating-point numbers, [H, W]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    if pixels.dtype.kind == "f":
        setattr(dataset, "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData", pixels.tobytes())
        return dataset
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    return dataset


def encode(dataset: Dataset, frame: bytes | bytearray) -> Dataset:
    """Put an encoded frame in the place of the pixels."""
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset["PixelData"].VR = "OB"
    return dataset


def rle(*planes: bytes) -> bytes:
    """Planes of bytes, of 16 bits the upper ones first, as DICOM's RLE: a segment each, of literal runs."""
    segments = [
        b"".join(bytes([len(plane[i : i + 128]) - 1]) + plane[i : i + 128] for i in range(0, len(plane), 128))
        for plane in planes
    ]
    starts = [64 + sum(map(len, segments[:k])) for k in range(len(segments))]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(starts))) + b"".join(segments)


def lut(first: int, entries: NDArray[Any], bits: int, *, packed: bool = False) -> Dataset:
    """An item with a look-up table of 16-bit entries or, ``packed``, of 8-bit ones, two a word."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first % 65536, bits])
    data = entries.astype("u1" if packed else "<u2").tobytes()
    item.add_new("LUTData", "OW", data + b"\0" * (len(data) % 2))
    return item


def to_bytes(dataset: Dataset, **tags: object) -> bytes:
    """The file, with attributes set or, where None, removed."""
    for name, value in tags.items():
        if value is None and name in dataset:
            delattr(dataset, name)
        elif value is not None:
            setattr(dataset, name, value)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def ramp(low: int, high: int, dtype: str) -> NDArray[Any]:
    """[4, 16] from low to high, each row the same."""
    return np.tile(np.linspace(low, high, 16), (4, 1)).astype(dtype)


def make_radiograph(
    kind: UID = ComputedRadiographyImageStorage,
    bits: int = 12,
    inverted: bool = False,
    reduction: ReductionName = "cubic",
    shape: tuple[int, int] = (48, 64),
) -> Dataset:
    """A valid chest radiograph of class CR, DX or SC: a blob on a ramp that is saturated at both ends, reduced."""
    y, x = np.mgrid[: SCALE * shape[0], : SCALE * shape[1]] / SCALE
    gray = 1.3 * x / shape[1] - 0.2 + 0.4 * np.exp(-((x - 30) ** 2 + (y - 20) ** 2) / 50) + 0.05 * np.sin(y)
    gray = reduce(gray.clip(0, 1).astype(np.float32), reduction).clip(0, 1).astype(np.float64)
    top = 2**bits - 1
    pixels = np.rint(top * (1 - gray if inverted else gray)).astype("u1" if bits <= 8 else "u2")
    dataset = make_dataset(pixels, bits)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (generate_uid(entropy_srcs=[n]) for n in ("study", "series"))
    dataset.PatientName, dataset.PatientID = "Röntgen^Anna", "17"
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientBirthDate, dataset.PatientSex = "19000101", "F"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200102", "030405", "1", "2"
    dataset.ReferringPhysicianName, dataset.Manufacturer = "Curie", "Maker"
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.SeriesDescription = 3, 4, "Thorax p.a."
    dataset.ImageType, dataset.BurnedInAnnotation = ["ORIGINAL", "PRIMARY"], "NO"
    dataset.PatientOrientation, dataset.PixelSpacing = ["L", "F"], [0.56, 0.56]
    dataset.Modality = {ComputedRadiographyImageStorage: "CR", SecondaryCaptureImageStorage: "OT"}.get(kind, "DX")
    dataset.WindowCenter, dataset.WindowWidth = (top + 1) / 2, 0.6 * top
    if kind == SecondaryCaptureImageStorage:
        dataset.ConversionType, dataset.Laterality = "WSD", None
        return dataset
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.ImagerPixelSpacing = "CHEST", "PA", [0.6, 0.6]
    if kind != ComputedRadiographyImageStorage:
        dataset.PresentationIntentType, dataset.ImageLaterality = "FOR PRESENTATION", "U"
        dataset.DetectorType, dataset.PositionerType = "DIRECT", None
        dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
        dataset.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
        dataset.LossyImageCompression, dataset.AcquisitionContextSequence = "00", []
        region = Dataset()
        region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "51185008", "SCT", "Chest"
        dataset.AnatomicRegionSequence = [region]
    return dataset


def read_original(data: bytes, choice: Choice | None = None) -> Source:
    """The source of a DICOM result."""
    return dicom.read(data, replace(choice or Choice(), original=True), [])


def make_result(source: Source, reduction: ReductionName = "cubic", noise: float = 0.02, **options: Any) -> Upscaled:
    """A result as a server would give: with detail of its own that reduces to the source."""
    detail = np.random.default_rng(0).normal(0, noise, [SCALE * side for side in source.image.shape])
    image = np.clip(upsample(source.image) + detail.astype(np.float32), 0, 1)
    image = faithful_to(source.image, image, History(reduction))
    return Upscaled(
        image=image,
        spread=np.full_like(image, 0.02),
        lr_error=0.0,
        degradation=reduction,
        noise=0.0,
        expected_error=0.01,
        pixel_mm=source.pixel_mm,
        preset=DEFAULT.name,
        model="0123456789abcdef" * 4,
        seed=7,
        options=Options.of(DEFAULT, **options),
        seconds=1.0,
    )
