"""The SHA-256 of every ONNX file of a model repository, in its file SHA256SUMS.

python -m pipeline.hashes                                    write it for a repository as it is
python -m pipeline.hashes --model-repository my/repository

``python -m pipeline.export`` writes it too, ``python -m pipeline.serve`` checks it, and so does
``cd model_repository && sha256sum -c SHA256SUMS``.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from pipeline.atomic import atomic_write
from pipeline.command_line import make_parser

NAME = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\\\r\0]+)")
"""A line of ``sha256sum``: in text or binary mode, with a name that needs no escapes."""
SHOWN = 12
"""Digits of a hash that people are shown."""


def remedy(repository: Path, undo: str = "restore it with git") -> str:
    return f"{undo}, or, if this is meant, run `python -m pipeline.hashes --model-repository {repository}`"


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file; raise OSError if it cannot be read."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def onnx_files(repository: Path) -> list[str]:
    """Return the names in the repository of its models' ONNX files."""
    return sorted(path.relative_to(repository).as_posix() for path in repository.glob("[!.]*/[0-9]*/*.onnx"))


def write_hashes(repository: Path) -> None:
    """Write SHA256SUMS for the files that are there; raise OSError on failure, which keeps an existing one."""
    text = "".join(f"{file_hash(repository / name)}  {name}\n" for name in onnx_files(repository))
    with atomic_write(repository / NAME) as partial:
        partial.write_text(text)


def read_hashes(path: Path) -> dict[str, str]:
    """Return file ⇒ SHA-256 from a file in the format of ``sha256sum``.

    Raises:
        ValueError: the file is malformed or cannot be read.
    """
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from error
    if lines[-1]:
        raise ValueError(f"'{path}' is cut off: its last line must end: {remedy(path.parent)}")
    found: dict[str, str] = {}
    for number, line in enumerate(lines[:-1], 1):
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"'{path}', line {number}: must be a SHA-256, two spaces and a file, got {line[:90]!r}")
        if match[2] in found:
            raise ValueError(f"'{path}', line {number}: {match[2]!r} is listed twice")
        found[match[2]] = match[1]
    return found


def check_hashes(repository: Path) -> str | None:
    """Check the repository's ONNX files against SHA256SUMS.

    Returns:
        The model hash: the SHA-256 of that file, so of all files together; None if the repository has none.

    Raises:
        ValueError: a file differs, is missing or is not listed, or SHA256SUMS is damaged.
    """
    path = repository / NAME
    if not path.exists():
        return None
    listed, present = read_hashes(path), onnx_files(repository)
    for name in [*listed, *present]:
        if name not in present:
            raise ValueError(f"'{repository / name}' is missing, '{path}' lists it: {remedy(repository)}")
        if name not in listed:
            raise ValueError(f"'{repository / name}' is not listed in '{path}': {remedy(repository, 'remove it')}")
    try:
        changed = next((name for name in present if file_hash(repository / name) != listed[name]), None)
        if changed is None:
            return file_hash(path)
    except OSError as error:
        raise ValueError(f"cannot read '{error.filename}': {error.strerror}") from error
    raise ValueError(f"'{repository / changed}' differs from its hash in '{path}': {remedy(repository)}")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m pipeline.hashes")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    repository = parser.parse_args(argv).model_repository
    try:
        write_hashes(repository)
    except OSError as error:
        print(f"error: cannot write the hashes of '{repository}': {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"wrote {repository / NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
