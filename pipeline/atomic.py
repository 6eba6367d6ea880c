"""Atomic file writes."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a file to write beside ``path``; it replaces ``path`` on success and is removed on failure."""
    # a random name: one derived from the target's could be too long
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # already gone, or its folder is not writable
            partial.unlink()
