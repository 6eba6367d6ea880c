"""Orderly shutdown of a server: finish requests in progress and refuse new ones before stopping Triton.

When stopping, Triton 2.51 refuses calls between its models, so that accepted requests fail, and one stop in twenty
under load aborts inside its Python backend. Therefore a model that calls others holds a shared lock on a file while it
works; to stop the server, its supervisor marks that file as closed, then waits for the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

VARIABLE = "CXR_SUPERRES_DOOR"
"""Environment variable of the server with the file's path; without it, models always work."""


class Closed(Exception):
    """The server is stopping and refuses new requests."""


class Door:
    """The supervisor's side: an in-memory file that disappears with this process."""

    def __init__(self) -> None:
        self.file = os.memfd_create("door")
        self.environment = {VARIABLE: f"/proc/{os.getpid()}/fd/{self.file}"}

    def close(self) -> None:
        """Refuse new requests."""
        os.ftruncate(self.file, 1)

    def is_idle(self) -> bool:
        """Whether no request is in progress; once closed and idle, this stays true."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.file, fcntl.LOCK_UN)  # new requests are refused, not kept waiting
        return True


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Keep the server from stopping until the block ends; used by models.

    Raises:
        Closed: the server is stopping, or its supervisor is gone.
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
