"""Formats are told by what files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.formats.kinds import HEAD, is_dicom, kind_of
from tests.dicom_files import make_dataset, to_bytes

DICOM = to_bytes(make_dataset(np.zeros((8, 8), "u2")))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"II*\0", "tiff"),
        (b"MM\0+", "tiff"),
        (b"\x93NUMPY", "npy"),
        (DICOM, "dicom"),
        (b"II*\0" + DICOM[4:], "dicom"),
        (DICOM[132:], "dicom"),
        (b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100" + bytes(120), "dicom"),
        (b"\0\x08\0\x05CS\0\x0aISO_IR 100" + bytes(120), "dicom"),
        (b"hello, I am text" * 9, None),
        (b"BM" + b"\x7f" * 200, None),
        (b"\x08\0\x05\0", None),
    ],
)
def test_kinds(head: bytes, kind: str | None) -> None:
    assert kind_of(head[:HEAD]) == kind


def test_dicom_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(DICOM)
    (tmp_path / "notes").write_text("text")
    assert is_dicom(tmp_path / "IM0001")
    assert not is_dicom(tmp_path / "notes")
    assert not is_dicom(tmp_path / "none")
