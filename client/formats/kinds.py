"""Which format a file is in, by its first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".btf", ".tf8", ".npy", ".dcm", ".dicom")
"""Of the files in a folder that are taken for images, with those that begin as DICOM does."""

HEAD = 132
"""Bytes from which the format can be told."""

Kind = Literal["png", "jpeg", "tiff", "npy", "dicom"]
MAGIC: dict[Kind, tuple[bytes, ...]] = {
    "png": (b"\x89PNG",),
    "jpeg": (b"\xff\xd8\xff",),
    "npy": (b"\x93NUMPY",),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that begins with so many bytes, 132 or more, is DICOM, with a preamble or without."""
    if head[128:132] == b"DICM":
        return True
    # without a preamble the first element is of group 2 or 8, and has a representation of two letters or a length
    little = head[:1] in (b"\2", b"\x08") and head[1:2] + head[3:4] == b"\0\0"
    big = head[:3] in (b"\0\2\0", b"\0\x08\0")
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return len(head) >= 132 and (little or big) and (explicit or (little and int.from_bytes(head[4:8], "little") < 256))


def kind_of(head: bytes) -> Kind | None:
    """The format of a file that begins so; None for what is no image. (A preamble of DICOM may be a TIFF's head.)"""
    if looks_like_dicom(head):
        return "dicom"
    return next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), None)


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM does."""
    try:
        with open(path, "rb") as file:
            return looks_like_dicom(file.read(HEAD))
    except OSError:
        return False
