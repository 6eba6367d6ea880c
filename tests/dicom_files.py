"""Small DICOM files for tests."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid


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
