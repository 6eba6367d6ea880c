"""What must be in no server's log: names of images and patients, and pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pydicom

from client.formats.kinds import SUFFIXES, is_dicom

NUMBERS = re.compile(r"(?:\b[01]\.\d{2,}(?:e-?\d+)?[\s,]+){6}")
"""Several numbers from 0 to 1 in a row, as when an image is printed."""


def names(folder: Path) -> Iterator[str]:
    """Yield the names of all images in a folder and its folders, and of the patients in those that are DICOM."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        if path.suffix.lower() in SUFFIXES:
            yield path.name
        if is_dicom(path):
            try:
                patient = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientName"])
            except Exception:  # tests damage files in every way
                continue
            yield from re.findall(r"\w{4,}", str(patient.get("PatientName", "")))


def found(log: str, forbidden: set[str]) -> set[str]:
    """Return the names that a log tells, as whole words, and numbers that may be pixels."""
    words = set(re.findall(r"[^\s/'\"=^,:]+", log))
    spaced = {name for name in forbidden if " " in name and name in log}
    return (forbidden & words) | spaced | set(NUMBERS.findall(log))


def logs(folder: Path) -> list[Path]:
    """Return the logs of all servers and proxies that tests started, whose file names end in ``log``."""
    return [path for path in folder.rglob("*log") if path.is_file()]
