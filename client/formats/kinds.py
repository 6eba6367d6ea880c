"""Detect file formats from their first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".btf", ".tf8", ".npy", ".dcm", ".dicom")
"""Suffixes of files in a folder that are taken for images, besides DICOM files of any name."""

HEAD = 132
"""Number of bytes needed to detect the format."""

Kind = Literal["png", "jpeg", "tiff", "npy", "dicom"]
MAGIC: dict[Kind, tuple[bytes, ...]] = {
    "png": (b"\x89PNG",),
    "jpeg": (b"\xff\xd8\xff",),
    "npy": (b"\x93NUMPY",),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file, 132 or more, are DICOM, with or without a preamble."""
    if head[128:132] == b"DICM":
        return True
    # without a preamble, the first element is of group 2 or 8 and has a two-letter representation or a length
    little = head[:1] in (b"\2", b"\x08") and head[1:2] + head[3:4] == b"\0\0"
    big = head[:3] in (b"\0\2\0", b"\0\x08\0")
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return len(head) >= 132 and (little or big) and (explicit or (little and int.from_bytes(head[4:8], "little") < 256))


def kind_of(head: bytes) -> Kind | None:
    """Return the format of a file with these first bytes; None if unknown. (A DICOM preamble may be a TIFF header.)"""
    if looks_like_dicom(head):
        return "dicom"
    return next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), None)


def is_dicom(path: Path) -> bool:
    """Whether the file is DICOM, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return looks_like_dicom(file.read(HEAD))
    except OSError:
        return False
