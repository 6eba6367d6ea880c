"""The check of the logs of all tests' servers sees what must not be there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.dicom_files import make_dataset
from tests.logs import found, logs, names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "ward 7.png").touch()
    (tmp_path / "scans" / "broken.dcm").write_bytes(bytes(128) + b"DICM")
    dataset = make_dataset(np.zeros((4, 4), np.uint16))
    dataset.PatientName = "Doe^Johanna"
    dataset.save_as(tmp_path / "scans" / "no suffix", enforce_file_format=True)
    (tmp_path / "log").write_text("ready\n")
    return tmp_path


def test_names_are_those_of_images_and_patients(folder: Path) -> None:
    assert set(names(folder)) == {"ward 7.png", "broken.dcm", "Johanna"}
    assert logs(folder) == [folder / "log"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("cannot read '/scans/broken.dcm'", {"broken.dcm"}),
        ("request 'ward 7.png' failed", {"ward 7.png"}),
        ("request 'Doe^Johanna' failed", {"Johanna"}),
        ("unbroken.dcm and Johannas", set()),
        ("took 0.25 s, 0.5 s", set()),
    ],
)
def test_a_name_is_found_as_a_whole_word(folder: Path, line: str, told: set[str]) -> None:
    assert found(line, set(names(folder))) == told


def test_an_image_that_is_printed_is_found() -> None:
    assert found(f"failed for {np.random.default_rng(0).random((3, 8)) / 2}", set())
