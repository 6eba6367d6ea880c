"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to: it replaces ``path`` when the block ends, and is removed when that fails."""
    # a name of its own: with the target's in it, it could be too long
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # it is gone, or its folder cannot be written either
            partial.unlink()
