"""DICOM data sets, stored values and padding; ``dicom_display`` converts them to gray."""

from __future__ import annotations

import io
import logging
import math
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from client.formats import dicom_codecs
from client.formats.dicom_display import Mask, first_number, from_palette, gray_curve, numbers, places
from client.formats.dicom_original import check_original, keep
from client.formats.source import (
    Choice,
    FormatError,
    Source,
    check_choice,
    check_size,
    choose_one,
    luminance,
    not_finite,
)
from pipeline.spec import PIXEL_MM

PIXELS = {"PixelData": "", "FloatPixelData": "Float", "DoubleFloatPixelData": "DoubleFloat"}
"""Keyword of the pixels ⇒ prefix of the keywords of their padding values."""
GRAY, PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

MAX_INFLATED, CHUNK = 2**30, 2**24
"""Maximum bytes of a deflated data set, 4 per pixel of the largest image, and bytes that are inflated at a time."""

# problems with a file are reported by us, in one line
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False


def read(data: bytes, choice: Choice, notes: list[str]) -> Source:
    """Read a frame of a DICOM file.

    Raises:
        FormatError: the file is damaged, too large, has no image, or has an unsupported compression.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(data, choice, notes)
    except FormatError:
        raise
    except Exception as error:  # a damaged file can make a parser fail in any way
        raise FormatError(f"is not a readable DICOM image: {error}") from error


def parse(data: bytes, choice: Choice, notes: list[str]) -> tuple[Dataset, str]:
    """Return a file's data set, with what reading it needs, and the keyword of its pixels, which are not decoded.

    Raises:
        FormatError: the file has no image, or one that is not supported; damage of other kinds raises anything.
    """
    if data[128:132] != b"DICM":
        notes.append("DICOM without a preamble")
    check_inflated(data)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    keyword = next((name for name in PIXELS if dataset.get(name)), None)
    if keyword is None:
        raise FormatError(f"is DICOM without pixels ({_class_of(dataset)}), or cut off before them")
    check_choice(choice, "DICOM")
    complete(dataset, keyword, notes)
    kind = dataset.PhotometricInterpretation
    if kind not in (*GRAY, PALETTE, *COLOUR) or (kind.startswith("YBR") and dataset.BitsAllocated != 8):
        depth = f" in {dataset.BitsAllocated} bits" if kind in COLOUR else ""
        raise FormatError(f"is {kind}{depth}, must be {', '.join((*GRAY, PALETTE, *COLOUR))} (YBR in 8 bits)")
    check_size(dataset.Columns, dataset.Rows)
    dataset.NumberOfFrames = max(1, int(first_number(dataset, "NumberOfFrames", notes) or 1))
    if choice.original:
        check_original(dataset, keyword)
    return dataset, keyword


def _read(data: bytes, choice: Choice, notes: list[str]) -> Source:
    dataset, keyword = parse(data, choice, notes)
    kind, frames = dataset.PhotometricInterpretation, dataset.NumberOfFrames
    frame = choose_one("frame", choice.frame, frames, notes)
    bits = 8 if dataset.get("BitsStored", 16) <= 8 else 16
    stored, uncut = stored_values(dataset, keyword, frame, notes)
    size = pixel_mm(dataset, frame, notes)
    if kind in COLOUR:
        gray = luminance(stored, notes) / (2**dataset.BitsStored - 1)
        return Source(gray.clip(0, 1).astype(np.float32), bits, pixel_mm=size)
    if kind == PALETTE:
        return Source(from_palette(stored, dataset, notes), bits, pixel_mm=size)
    unused = padding_range(dataset, keyword, notes)
    padding = None if unused is None else find_padding(stored, uncut, unused, notes)
    if stored.dtype.kind == "f":
        outside = not_finite(stored, notes)
        stored, padding = np.where(outside, 0, stored), outside if padding is None else outside | padding
        bits = 16
    curve, window = gray_curve(stored, padding, dataset, frame, choice.window, notes)
    gray = curve(stored)
    if padding is not None:
        gray[padding] = 0
    original = keep(dataset, stored, uncut, padding, unused, curve, window) if choice.original else None
    return Source(gray, bits, pixel_mm=size, original=original)


def check_inflated(data: bytes) -> None:
    """Raise FormatError if a deflated data set is too large, without keeping what is inflated."""
    file = io.BytesIO(data)
    if read_preamble(file, force=True) is None:
        return
    meta = _read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflate, rest, size = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
    while rest and not inflate.eof:
        size += len(inflate.decompress(rest, CHUNK))
        rest = inflate.unconsumed_tail
        if size > MAX_INFLATED:
            raise FormatError(f"inflates to more than {MAX_INFLATED / 2**30:g} GiB")


def pixel_mm(dataset: Dataset, frame: int, notes: list[str]) -> float | None:
    """Return the pixel spacing in the patient, in mm; None if the file has no plausible value.

    It is PixelSpacing, or else the detector's spacing divided by the magnification of projection (PS3.3 10.7.1.3).
    """
    measures = places(dataset, frame, "PixelMeasuresSequence")
    found = next(filter(None, (numbers(place, "PixelSpacing", notes) for place in measures)), [])
    enlarged = 1.0
    if not found:
        found = numbers(dataset, "ImagerPixelSpacing", notes)
        enlarged = first_number(dataset, "EstimatedRadiographicMagnificationFactor", notes) or 1.0
    if not found:
        return None
    sizes = [(mm or 0.0) / enlarged for mm in found]
    low, high = PIXEL_MM
    if not all(low <= mm <= high for mm in sizes):
        notes.append(f"pixels of {'×'.join(f'{mm:g}' for mm in sizes)} mm: ignored")
        return None
    return math.prod(sizes) ** (1 / len(sizes))


def _class_of(dataset: Dataset) -> str:
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "of no class"
    return str(getattr(uid, "name", uid))


def complete(dataset: Dataset, keyword: str, notes: list[str]) -> None:
    """Fill in missing or invalid attributes that decoding requires, each with a note.

    Raises:
        FormatError: rows or columns are missing.
    """
    for name in ("Rows", "Columns"):
        if not dataset.get(name):
            raise FormatError(f"is not a readable DICOM image: it has no {name}")
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not (syntax and syntax.is_transfer_syntax):
        dataset.file_meta.TransferSyntaxUID = syntax_of(dataset, keyword)
        problem = f"unknown transfer syntax {syntax}" if syntax else "no transfer syntax"
        notes.append(f"{problem}: taken as {dataset.file_meta.TransferSyntaxUID.name}")
    complete_colour(dataset, notes)
    if keyword == "PixelData":
        complete_bits(dataset, notes)
    else:
        dataset.BitsAllocated = 32 if keyword == "FloatPixelData" else 64


def complete_colour(dataset: Dataset, notes: list[str]) -> None:
    """Fill in the attributes of colour."""
    if not dataset.get("SamplesPerPixel"):
        dataset.SamplesPerPixel = 1
    kind = " ".join(str(dataset.get("PhotometricInterpretation") or "").upper().split())
    fitting = "MONOCHROME2" if dataset.SamplesPerPixel == 1 else "RGB"
    if not kind:
        notes.append(f"no PhotometricInterpretation: taken as {fitting}")
    elif (kind in COLOUR) != (fitting == "RGB"):
        notes.append(f"{kind} with {dataset.SamplesPerPixel} samples per pixel: taken as {fitting}")
        kind = ""
    dataset.PhotometricInterpretation = kind or fitting
    if dataset.SamplesPerPixel > 1 and dataset.get("PlanarConfiguration") is None:
        dataset.PlanarConfiguration = 0


def complete_bits(dataset: Dataset, notes: list[str]) -> None:
    """Fill in the attributes of integer pixels."""
    if not dataset.get("BitsAllocated"):
        size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
        dataset.BitsAllocated = 8 * min(4, max(1, len(dataset.PixelData) // size))
        notes.append(f"no BitsAllocated: taken as {dataset.BitsAllocated}")
    if not dataset.get("BitsStored") or dataset.BitsStored > dataset.BitsAllocated:
        notes.append(f"BitsStored is {dataset.get('BitsStored')}: taken as {dataset.BitsAllocated}")
        dataset.BitsStored = dataset.BitsAllocated
    signed = dataset.get("PixelRepresentation")
    if signed not in (0, 1) or (signed and dataset.PhotometricInterpretation in (PALETTE, *COLOUR)):
        problem = "no PixelRepresentation" if signed is None else f"PixelRepresentation is {signed}"
        notes.append(f"{problem}: taken as unsigned")
        dataset.PixelRepresentation = 0


def syntax_of(dataset: Dataset, keyword: str) -> UID:
    """Guess the transfer syntax of a data set that does not state it.

    Raises:
        FormatError: the pixels have an unknown compression.
    """
    value = dataset[keyword].value
    if keyword == "PixelData" and value.startswith(b"\xfe\xff\x00\xe0"):
        syntax = dicom_codecs.guess_syntax(value)
        if syntax is None:
            raise FormatError("has no transfer syntax, and its compressed pixels do not reveal it")
        return syntax
    implicit, little = dataset.original_encoding
    if little is False:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def decode(dataset: Dataset, frame: int, *, as_stored: bool = False) -> NDArray[Any]:
    """Decode a frame to [H, W] or [H, W, 3] in RGB; ``as_stored``: keep bits beyond BitsStored unchanged.

    Raises:
        FormatError: the compression is not supported.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = dicom_codecs.PLUGIN if syntax.is_encapsulated and syntax != RLELossless else ""
    try:
        return pixel_array(dataset, index=frame, decoding_plugin=plugin, correct_unused_bits=not as_stored)
    except NotImplementedError as error:
        if not syntax.is_encapsulated:
            raise
        raise FormatError(f"is compressed as {syntax.name}, which is not supported") from error


def stored_values(dataset: Dataset, keyword: str, frame: int, notes: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a frame's stored values, and the same with the bits beyond BitsStored, which may mark padding."""
    native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if native:
        check_length(dataset, keyword, notes)
    if keyword != "PixelData" or dataset.BitsAllocated == 1:
        values = decode(dataset, frame)
        return values, values
    stored, allocated = dataset.BitsStored, dataset.BitsAllocated
    high = dataset.get("HighBit")
    high = stored - 1 if high is None or not stored <= high + 1 <= allocated else high
    if not native and high == stored - 1:
        values = decode(dataset, frame)
        return values, values
    uncut = decode(dataset, frame, as_stored=True)
    # shift left so that the highest stored bit is the sign, and right again
    return np.right_shift(np.left_shift(uncut, allocated - 1 - high), allocated - stored), uncut


def check_length(dataset: Dataset, keyword: str, notes: list[str]) -> None:
    """Note surplus bytes of uncompressed pixels.

    Raises:
        FormatError: bytes are missing.
    """
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        return
    pixels = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.NumberOfFrames
    expected, found = pixels * dataset.BitsAllocated // 8, len(dataset[keyword].value)
    if found < expected:
        raise FormatError(f"is cut off: {found} of {expected} bytes of pixels")
    if (surplus := found - expected) > 1:
        notes.append(f"{surplus} more bytes of pixels than rows, columns and frames require: ignored")


def padding_range(dataset: Dataset, keyword: str, notes: list[str]) -> tuple[Any, Any] | None:
    """Return the smallest and largest value of padding (PS3.3 C.7.5.1.1.2); None if the file specifies none."""
    names = (f"{PIXELS[keyword]}PixelPaddingValue", f"{PIXELS[keyword]}PixelPaddingRangeLimit")
    found = []
    for name in names:
        value = dataset.get(name)
        if isinstance(value, (int, float)):
            found.append(value)
        elif value is not None:
            notes.append(f"{name} is {value!r}, which is not a number: ignored")
    if names[0] not in dataset or not found:
        return None
    if keyword == "PixelData":
        # an element of 16 bits may state a signed value as unsigned, and vice versa
        levels = 2**dataset.BitsAllocated
        lowest = -levels // 2 if dataset.PixelRepresentation else 0
        found = [(int(value) - lowest) % levels + lowest for value in found]
    return min(found), max(found)


def find_padding(stored: NDArray[Any], uncut: NDArray[Any], unused: tuple[Any, Any], notes: list[str]) -> Mask:
    """Return the mask of padding, whose values are in the range ``unused``."""
    low, high = unused
    padding: Mask = (stored >= low) & (stored <= high)
    if not padding.any():
        padding = (uncut >= low) & (uncut <= high)
    if padding.any():
        notes.append(
            f"padding is black: {padding.sum()} pixels of {f'{low:g}' if low == high else f'{low:g} to {high:g}'}"
        )
    return padding
