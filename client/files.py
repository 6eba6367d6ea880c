"""Read PNG, JPEG, TIFF, DICOM and .npy files: gray image, depth, and notes for the user."""

from __future__ import annotations

import stat
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from client.formats.kinds import HEAD, Kind, kind_of
from client.formats.source import Choice, FileError, FormatError, Source
from pipeline.method.images import downscale as downscale_cubic
from pipeline.method.images import downscale_by_area
from pipeline.spec import SCALE

_one_at_a_time = threading.Lock()
"""Images may be large, and pydicom's warnings can only be suppressed for the whole process."""

MAX_BYTES = 4 * 2**30
"""Maximum bytes of a file: twice those of the largest image in double precision."""

DECODERS: dict[Kind, str] = {"png": "raster", "jpeg": "raster", "tiff": "tiff", "npy": "npy", "dicom": "dicom"}
"""Kind ⇒ decoder module, imported on demand: pydicom alone takes 0.2 s."""


def read_image(path: Path | str, choice: Choice | None = None, downscale: int | None = None) -> Source:
    """Read an image, converting colour to gray.

    Args:
        path: file, whose format is detected from its contents, not its name.
        choice: window, frame and page to use instead of the file's defaults.
        downscale: reduction factor; 4 uses the paper's protocol, others reduce by area.

    Raises:
        FileError: the file is missing, not an image, damaged, or not supported.
    """
    path, choice, notes = Path(path), choice or Choice(), list[str]()
    try:
        data = read_bytes(path)
        kind = kind_of(data[:HEAD])
        if kind is None:
            raise FormatError("is not a readable PNG, JPEG, TIFF, DICOM or .npy image")
        if choice.original and kind != "dicom":
            raise FormatError(f"is {kind.upper()}, must be DICOM for --format dicom")
        with _one_at_a_time:
            source: Source = import_module(f"client.formats.{DECODERS[kind]}").read(data, choice, notes)
        if choice.pixel_mm is not None:
            source = replace(source, pixel_mm=choice.pixel_mm)
        if downscale is not None:
            source = smaller(source, downscale, notes)
    except FormatError as error:
        raise FileError(f"'{path}' {' '.join(str(error).split())}") from error
    except MemoryError:
        raise FileError(f"'{path}' does not fit into memory") from None
    return replace(source, notes=tuple(dict.fromkeys(notes)))


def read_bytes(path: Path) -> bytes:
    """Return a file's contents; raise FormatError if they cannot be read, or are empty or too large."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not path.is_dir():
            raise FormatError("is not a regular file: write it to one first")
        if status.st_size > MAX_BYTES:
            raise FormatError(f"has {status.st_size / 2**30:.1f} GiB, must have at most {MAX_BYTES / 2**30:.0f} GiB")
        data = path.read_bytes()
    except FileNotFoundError:
        raise FormatError("does not exist") from None
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise FormatError("is empty")
    return data


def smaller(source: Source, factor: int, notes: list[str]) -> Source:
    """Reduce the image by ``factor``.

    Raises:
        FormatError: the image is too small.
    """
    if min(source.image.shape) < factor:
        raise FormatError(f"is too small for --downscale {factor}")
    reduce, how = (downscale_cubic, "cubic") if factor == SCALE else (downscale_by_area, "by area")
    image = reduce(source.image, factor).clip(0, 1)
    rows, columns = (side % factor for side in source.image.shape)
    left_out = f", {columns} columns and {rows} rows left out" if rows or columns else ""
    notes.append(f"downscaled ×{factor} to {image.shape[1]}×{image.shape[0]}, {how}{left_out}")
    size = None if source.pixel_mm is None else factor * source.pixel_mm
    original = source.original and source.original.smaller(reduce, factor)
    return replace(source, image=image, pixel_mm=size, original=original)
