"""Atomic file writes, and what killed writers leave."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.owner import NAMESPACE, began


def _machine() -> str:
    """Return a number for the processes among which an ID means one: this machine's or container's."""
    try:
        namespace = NAMESPACE.stat().st_ino
    except OSError:
        namespace = 0
    return f"{zlib.crc32(f'{platform.node()} {namespace}'.encode()):08x}"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a file to write beside ``path``; it replaces ``path`` on success and is removed on failure.

    Its name tells the writer, for ``remove_unfinished``.
    """
    # a name of its own: one derived from the target's could be too long
    name = f".{_machine()}-{os.getpid()}-{began('self') or 0}-{secrets.token_hex(4)}.partial"
    partial = path.with_name(name)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # already gone, or its folder is not writable
            partial.unlink()


def remove_unfinished(folder: Path) -> int:
    """Remove what killed processes of this machine left of ``atomic_write`` in a folder; return the number of files."""
    removed = 0
    with contextlib.suppress(OSError):
        for path in folder.glob(".*.partial"):
            match = re.fullmatch(r"\.(\w{8})-(\d+)-(\d+)-\w{8}\.partial", path.name)
            if match and match[1] == _machine() and began(match[2]) != match[3] != "0":
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed += 1
    return removed
