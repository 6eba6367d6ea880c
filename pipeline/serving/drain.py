"""Orderly shutdown of a server: finish requests in progress and refuse new ones before stopping Triton.

When stopping, Triton 2.51 refuses calls between its models, so that accepted requests fail, and one stop in twenty
under load aborts inside its Python backend. Therefore a model that calls others holds a shared lock on a file while it
works; to stop the server, its supervisor marks that file as closed, then waits for the lock. What takes too long is
refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

VARIABLE = "CXR_SUPERRES_DOOR"
"""Environment variable of the server with the file's path; without it, models always work."""


CLOSED, REFUSING = 1, 2
"""Sizes of the file, in bytes: new requests are refused, requests in progress too."""


class Closed(Exception):
    """The server is stopping and refuses new requests."""


class Door:
    """The supervisor's side: an in-memory file that disappears with this process."""

    def __init__(self) -> None:
        self.file = os.memfd_create("door")
        self.environment = {VARIABLE: f"/proc/{os.getpid()}/fd/{self.file}"}

    def close(self) -> None:
        """Refuse new requests."""
        os.ftruncate(self.file, CLOSED)

    def refuse(self) -> None:
        """Refuse requests in progress too, at their next call of a network."""
        os.ftruncate(self.file, REFUSING)

    def is_idle(self) -> bool:
        """Whether no request is in progress; once closed and idle, this stays true."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.file, fcntl.LOCK_UN)  # new requests are refused, not kept waiting
        return True


@contextlib.contextmanager
def working() -> Iterator[Callable[[], bool]]:
    """Keep the server from stopping until the block ends; used by models.

    Yields:
        A function that tells whether the work must be refused before it is finished.

    Raises:
        Closed: the server is stopping, or its supervisor is gone.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        yield lambda: False
        return
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise Closed from error
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file).st_size >= CLOSED:
            raise Closed
        yield lambda: os.fstat(file).st_size >= REFUSING
    finally:
        os.close(file)
