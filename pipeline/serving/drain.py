"""Stop a server in order: what is under way ends, what comes later is refused, only then does Triton hear of it.

Triton 2.51 that is told to stop refuses what its models ask of one another, so that requests which it had accepted
fail, and one stop in twenty under load ends in an abort inside its Python backend. Therefore a model that calls others
works under a shared lock on a file, and whoever stops the server closes that file's door, then waits for the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

VARIABLE = "CXR_SUPERRES_DOOR"
"""Of a server's environment: the file's path. Without it, models work at any time."""


class Closed(Exception):
    """The server stops; nothing new is begun."""


class Door:
    """The supervisor's side: a file in memory, gone with this process."""

    def __init__(self) -> None:
        self.file = os.memfd_create("door")
        self.environment = {VARIABLE: f"/proc/{os.getpid()}/fd/{self.file}"}

    def close(self) -> None:
        """Let nothing new begin."""
        os.ftruncate(self.file, 1)

    def is_idle(self) -> bool:
        """Whether nothing is under way; asked of a closed door, this stays so."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.file, fcntl.LOCK_UN)  # whoever comes now is refused, not kept waiting
        return True


@contextlib.contextmanager
def working() -> Iterator[None]:
    """A model's side: the block is ended before the server is told to stop.

    Raises:
        Closed: it is about to be, or whoever started it is gone.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        yield
        return
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise Closed from error
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file).st_size:
            raise Closed
        yield
    finally:
        os.close(file)
