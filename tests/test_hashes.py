"""Hashes of the repository's ONNX files."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.hashes import NAME, check_hashes, file_hash, main, onnx_files, read_hashes, write_hashes


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models with three ONNX files and their hashes, beside what is not hashed."""
    repository = tmp_path / "models"
    for name in ("a/1/model.onnx", "a/1/model_int8.onnx", "b/2/model.onnx", "b/2/model.plan", "b/config.pbtxt"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(name.encode())
    write_hashes(repository)
    return repository


def test_every_onnx_file_is_listed_as_by_sha256sum(repository: Path) -> None:
    names = ["a/1/model.onnx", "a/1/model_int8.onnx", "b/2/model.onnx"]
    assert onnx_files(repository) == names
    expected = subprocess.run(["sha256sum", *names], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert (repository / NAME).read_text() == expected
    assert list(read_hashes(repository / NAME)) == names


def test_the_model_hash_is_that_of_the_file(repository: Path) -> None:
    assert check_hashes(repository) == hashlib.sha256((repository / NAME).read_bytes()).hexdigest()


def test_a_repository_without_hashes_has_no_model_hash(repository: Path) -> None:
    (repository / NAME).unlink()
    assert check_hashes(repository) is None


def refusal(repository: Path) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_hashes(repository)
    assert f"--model-repository {repository}`" in str(error.value), "the remedy"
    return str(error.value)


def test_a_changed_file_is_named(repository: Path) -> None:
    (repository / "b/2/model.onnx").write_bytes(b"other")
    assert refusal(repository).startswith(f"'{repository}/b/2/model.onnx' differs from its hash")


def test_a_missing_file_is_named(repository: Path) -> None:
    (repository / "a/1/model_int8.onnx").unlink()
    assert refusal(repository).startswith(f"'{repository}/a/1/model_int8.onnx' is missing")


def test_a_file_that_is_not_listed_is_named(repository: Path) -> None:
    shutil.copytree(repository / "a", repository / "c")
    assert refusal(repository).startswith(f"'{repository}/c/1/model.onnx' is not listed")


def test_files_outside_are_not_looked_for(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.onnx").write_bytes(b"")
    line = f"{file_hash(tmp_path / 'outside.onnx')}  ../outside.onnx\n"
    (repository / NAME).write_text((repository / NAME).read_text() + line)
    assert "outside.onnx' is missing" in refusal(repository)


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"\xff\n", "cannot read"),
        (f"{DIGEST} a.onnx\n".encode(), "line 1"),
        (f"{DIGEST[1:]}  a.onnx\n".encode(), "line 1"),
        (f"{DIGEST}  a.onnx\n\n".encode(), "line 2"),
        (f"{DIGEST}  a.onnx\n{DIGEST} *a.onnx\n".encode(), "line 2: 'a.onnx' is listed twice"),
        (f"{DIGEST}  a.onnx".encode(), "is cut off"),
    ],
)
def test_damaged_hashes_are_named(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / NAME).write_bytes(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_hashes(tmp_path / NAME)
    assert str(tmp_path / NAME) in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_writes_them_for_files_as_they_are(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = check_hashes(repository)
    (repository / "b/2/model.onnx").write_bytes(b"other")
    assert main(["--model-repository", str(repository)]) == 0
    assert capsys.readouterr().out == f"wrote {repository / NAME}\n"
    assert check_hashes(repository) not in (None, before)
    assert not list(repository.glob(".*"))


def test_the_command_says_what_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-repository", str(tmp_path / "nowhere")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_the_shipped_hashes_are_those_of_the_shipped_files() -> None:
    assert check_hashes(ROOT / "model_repository") is not None
