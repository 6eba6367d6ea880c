"""Files ⇄ images: PNG, JPEG, TIFF and DICOM in, PNG out."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import PngImagePlugin
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from pipeline.images import Image, to_integers
from pipeline.whole import whole_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
PNG_OR_JPEG = (b"\x89PNG", b"\xff\xd8\xff")
TIFF = (b"II*\0", b"MM\0*")

# a file that OpenCV cannot decode is reported by us, in one line; the function has moved in OpenCV's newer releases
attrgetter("setLogLevel" if hasattr(cv2, "setLogLevel") else "utils.logging.setLogLevel")(cv2)(0)


class FileError(Exception):
    """A file cannot be read or written; the message names it."""


@dataclass(frozen=True)
class Source:
    """An image as it was in its file."""

    image: Image
    bits: int
    """8 or 16: the depth in which the result should be written"""
    notes: tuple[str, ...] = ()
    """what was changed in reading, for the user"""


def is_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's magic bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def list_images(folder: Path) -> list[Path]:
    """The files of a folder that are images by their suffix or are DICOM, sorted.

    Raises:
        FileError: there are none.
    """
    paths = sorted(p for p in folder.iterdir() if p.is_file() and (p.suffix.lower() in SUFFIXES or is_dicom(p)))
    if not paths:
        raise FileError(f"'{folder}' holds no images ({', '.join(SUFFIXES)})")
    return paths


def read_image(path: Path) -> Source:
    """Read a gray image; colour becomes gray.

    Raises:
        FileError: the file is missing, not an image, truncated, or of a kind that is not supported.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileError(f"'{path}' does not exist") from None
    except OSError as error:
        raise FileError(f"'{path}' cannot be read: {error.strerror}") from error
    if not data:
        raise FileError(f"'{path}' is empty")
    return _read_dicom(path) if data[128:132] == b"DICM" else _decode(path, data)


def _decode(path: Path, data: bytes) -> Source:
    if data.startswith(PNG_OR_JPEG):
        try:  # Pillow names what is wrong with a damaged file; OpenCV prints it past us
            with PILImage.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
            raise FileError(f"'{path}' is damaged: {error}") from error
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise FileError(f"'{path}' is not a readable PNG, JPEG, TIFF or DICOM image")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise FileError(f"'{path}' has {pixels.dtype} pixels, supported are 8 and 16 bits")
    bits = 8 * pixels.dtype.itemsize
    notes: tuple[str, ...] = ()
    if pixels.ndim == 3:
        if not (pixels == pixels[:, :, :1]).all():
            notes = ("colour turned to gray",)
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    elif bits == 16 and data.startswith(TIFF) and _white_is_zero(path):
        notes = ("inverted: the TIFF stores white as 0",)
        pixels = 65535 - pixels
    return Source((pixels / np.float32(2**bits - 1)).astype(np.float32), bits, notes)


def _white_is_zero(path: Path) -> bool:
    """Whether a gray TIFF says so; OpenCV heeds it in 8 bits, not in 16."""
    try:
        with PILImage.open(path) as image:
            return dict(getattr(image, "tag_v2", {})).get(PHOTOMETRIC_INTERPRETATION) == 0
    except OSError:
        return False


def _read_dicom(path: Path) -> Source:
    try:
        dataset = pydicom.dcmread(path)
        kind = dataset.get("PhotometricInterpretation")
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise FileError(f"'{path}' is {kind or 'DICOM without pixels'}, supported are MONOCHROME1 and MONOCHROME2")
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise FileError(f"'{path}' has {dataset.NumberOfFrames} frames, supported is one")
        gray, low, high = _windowed(dataset)
    except FileError:
        raise
    except Exception as error:  # a damaged file can make a parser fail in any way
        reason = " ".join(str(error).split())
        raise FileError(f"'{path}' is not a readable DICOM image: {reason}") from error
    image = np.clip((gray - low) / (high - low), 0.0, 1.0).astype(np.float32)
    notes = ("inverted: MONOCHROME1 stores white as 0",) if kind == "MONOCHROME1" else ()
    return Source(1 - image if kind == "MONOCHROME1" else image, 8 if dataset.BitsStored <= 8 else 16, notes)


def _windowed(dataset: pydicom.Dataset) -> tuple[NDArray[np.float64], float, float]:
    """The pixels after rescale and window (or VOI LUT), and what black and white are in them.

    Without a window, these are the darkest and the brightest pixel.
    """
    values = np.asarray(apply_modality_lut(dataset.pixel_array, dataset))
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if dataset.get("VOILUTSequence"):
        gray = apply_voi(np.rint(values).astype(np.int64), dataset)
        ends = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif center not in (None, "") and width not in (None, ""):
        first = [float(v[0] if isinstance(v, MultiValue) else v) for v in (center, width)]
        gray = apply_windowing(values, dataset)
        ends = apply_windowing(first[0] + 10.0 * np.array([-first[1], first[1]]), dataset)
    else:
        gray = values
        ends = values.min(), values.max()
    low, high = (float(end) for end in ends)
    return gray.astype(np.float64), low, max(high, low + 1e-9)


def write_png(path: Path, image: Image | PILImage.Image, bits: int = 8, text: dict[str, Any] | None = None) -> None:
    """Write a PNG whole or not at all: a gray image in [0, 1] in 8 or 16 bits, or a picture; ``text`` as text chunks.

    Raises:
        FileError: the file cannot be written.
    """
    picture = image if isinstance(image, PILImage.Image) else PILImage.fromarray(to_integers(image, bits))
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, str(value))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            picture.save(partial, format="PNG", pnginfo=info)
    except OSError as error:
        raise FileError(f"'{path}' cannot be written: {error.strerror or error}") from error
