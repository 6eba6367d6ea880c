"""Tokens, and files of one: what is none is refused, and never told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tokens import TokenError, check_token, read_token


@pytest.mark.parametrize("token", ["a", "!~", "x" * 4096])
def test_tokens(token: str) -> None:
    assert check_token(token) == token


WRONG = [
    ("", "got an empty one"),
    ("x" * 4097, "got 4097"),
    ("two\nlines", "got several lines"),
    ("end\n", "got several lines"),
    ("with space", "got spaces or other characters"),
    ("tab\t", "got spaces or other characters"),
    ("schlüssel", "got spaces or other characters"),
    ("\0", "got spaces or other characters"),
]


@pytest.mark.parametrize(("token", "problem"), WRONG)
def test_what_is_no_token(token: str, problem: str) -> None:
    with pytest.raises(TokenError) as error:
        check_token(token)
    assert str(error.value).endswith(problem)
    assert not token or token not in str(error.value)


def test_what_is_no_string() -> None:
    with pytest.raises(TokenError) as error:
        check_token(b"secret")
    assert str(error.value) == "'token' must be a string, got a bytes"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_token_files(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "token").write_bytes(b"secret" + end)
    assert read_token(tmp_path / "token") == "secret"


@pytest.mark.parametrize("data", [b"", b"\n", b"a\nb\n", b"a\n\n", b"\xff\xfe", "ü".encode(), b"x" * 5000])
def test_files_without_a_token(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "token").write_bytes(data)
    with pytest.raises(TokenError) as error:
        read_token(tmp_path / "token")
    assert str(error.value).startswith(f"the token file '{tmp_path / 'token'}' must be a token")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(TokenError) as error:
            read_token(path)
        assert str(error.value).endswith(f"cannot be read ({problem})")
