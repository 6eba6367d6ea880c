"""Damaged files: a small number of what `python -m tests.fuzz_files` tries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.files import read_image
from client.reader import Reader
from tests.fuzz_files import FORMATS, damaged, outcome, read_all, seeds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_damaged_for_this_is_valid_before(kind: str, tmp_path: Path) -> None:
    for data in seeds(kind):
        (tmp_path / "file").write_bytes(data)
        assert read_image(tmp_path / "file").image.shape == (48, 64)
        assert any(damaged(data, np.random.default_rng(i)) != data for i in range(3))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_damaged_file_gets_an_image_or_one_line(kind: str) -> None:
    counts = read_all(kind, 150)
    assert counts["read"] + counts["refused"] + counts["crashed"] == 150, counts
    assert counts["read"] > 5, "or the damage is too great to get past the head"
    assert counts["refused"] > 20


def test_the_check_notices_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(seeds("png")[0])
    with Reader() as reader:
        assert outcome(reader, tmp_path / "file") == "read"
        monkeypatch.setattr(reader, "read", lambda _: 1 / 0)
        assert outcome(reader, tmp_path / "file") == "wrong: raised ZeroDivisionError"
