"""Damaged index, configuration, hash and plan files: a small number of what `python -m tests.fuzz_config` tries."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.serving import ServeError
from tests.fuzz_config import ONNX, READERS, broken, outcome, outcomes, seeds


@pytest.mark.parametrize("kind", READERS)
def test_what_is_damaged_for_this_is_valid_before(kind: str, tmp_path: Path) -> None:
    (tmp_path / "network.onnx").write_bytes(ONNX)
    for data in seeds(kind):
        (tmp_path / "file.json").write_bytes(data)
        READERS[kind](tmp_path / "file.json")
        assert any(broken(kind, number) != data for number in range(3))


@pytest.mark.parametrize("kind", READERS)
def test_every_damaged_file_is_read_or_refused_by_one_clear_error(kind: str) -> None:
    counts = Counter(outcomes(kind, 200))
    assert counts["read"] + counts["refused"] == 200, counts
    assert counts["read"] > 2
    assert counts["refused"] > 50


@pytest.mark.parametrize(
    ("error", "right"),
    [
        (ValueError("'FILE': wrong"), True),
        (ServeError("'FILE' is wrong"), True),
        (ValueError("wrong"), False),
        (ValueError("'FILE': one\ntwo"), False),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "FILE"), False),
        (KeyError("FILE"), False),
    ],
)
def test_the_check_notices_what_is_wrong(
    error: Exception, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"

    def read(_: Path) -> None:
        error.args = tuple(str(a).replace("FILE", str(path)) for a in error.args)
        raise error

    monkeypatch.setitem(READERS, "index", read)
    assert (outcome("index", path) == "refused") == right
