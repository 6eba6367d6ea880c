"""Check that results of a DICOM image can be written as DICOM, and keep what that needs of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    SecondaryCaptureImageStorage,
)

from client.formats.dicom_display import Curve, Mask
from client.formats.original import Original
from client.formats.source import FormatError

CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
"""Classes of images whose results can be written as DICOM: CR, DX, SC."""
UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
"""What a derived image must name of its source."""
BITS = (8, 16)
"""Bits allocated."""
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "NumberOfFrames", "PixelDataProviderURL")


def check_original(dataset: Dataset, keyword: str) -> None:
    """Check that results of an image can be written as DICOM.

    Raises:
        FormatError: they cannot.
    """
    kind = UID(dataset.get("SOPClassUID") or "")
    if kind not in CLASSES:
        raise FormatError(
            f"is {kind.name or 'of no class'}, must be CR, DX or single-frame Secondary Capture for --format dicom"
        )
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise FormatError(f"is {dataset.PhotometricInterpretation}, must be MONOCHROME1 or 2 for --format dicom")
    if dataset.NumberOfFrames > 1:
        raise FormatError(f"has {dataset.NumberOfFrames} frames, must have one for --format dicom")
    if keyword != "PixelData" or dataset.BitsAllocated not in BITS or dataset.BitsStored < 2:
        depth = f"{dataset.BitsAllocated} bits" if keyword == "PixelData" else f"{keyword}"
        raise FormatError(f"has pixels of {depth}, must have integers of 8 or 16 bits for --format dicom")
    for name in UIDS:
        value = UID(str(dataset.get(name) or ""))
        if not value.is_valid:
            what = f"has an invalid {name} ('{value}')" if value else f"has no {name}"
            raise FormatError(f"{what}, which a derived image must name: give --format png")


def header_of(dataset: Dataset) -> Dataset:
    """Return a copy of the data set without pixels and private elements, in little-endian order."""
    header = Dataset()
    header.update({element.tag: element for element in dataset if element.keyword not in PIXEL_KEYWORDS})
    header.remove_private_tags()
    if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:

        def swap(_: Dataset, element: DataElement) -> None:
            if element.VR == "OW" and isinstance(element.value, bytes):
                element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()

        header.walk(swap)
    return header


def keep(
    dataset: Dataset,
    stored: NDArray[np.integer[Any]],
    uncut: NDArray[np.integer[Any]],
    padding: Mask | None,
    padding_range: tuple[int, int] | None,
    curve: Curve,
    window: tuple[float, float] | None,
) -> Original:
    """Return what results need of an image that ``check_original`` has accepted.

    Args:
        dataset: data set with its pixels.
        stored: stored values [H, W].
        uncut: the same with the bits beyond those stored, which may mark padding.
        padding: mask of padding; None if the file does not specify any.
        padding_range: its smallest and largest value.
        curve: function from stored values to gray.
        window: center and width to write; None: the file's own.
    """
    values = stored.astype(np.int32)
    outside = np.zeros(stored.shape, bool) if padding is None else padding
    if padding_range is not None:
        beyond = outside & ((values < padding_range[0]) | (values > padding_range[1]))
        values = np.where(beyond, uncut, values).astype(np.int32)
    levels = 2**dataset.BitsStored
    lowest = -levels // 2 if dataset.PixelRepresentation else 0
    grays = curve(np.arange(lowest, lowest + levels)).astype(np.float32)
    syntax = dataset.file_meta.TransferSyntaxUID
    return Original(header_of(dataset), syntax, values, outside, padding_range, grays, window)
