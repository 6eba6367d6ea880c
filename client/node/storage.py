"""The node's files, which are on disk, not only in memory, once they are written."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.atomic import atomic_write, remove_unfinished

FOLDERS = ("received", "derived", "dead")


def sync(path: Path) -> None:
    """Have the disk write a file's data or a folder's entries."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a file, which is complete on disk afterwards, or not there at all. Raises OSError."""
    with atomic_write(path) as partial:
        write(partial)
        sync(partial)
    sync(path.parent)


class InUse(Exception):
    """Another node uses the folder."""


class Storage:
    """A folder for one node at a time, of files named after images' SOP Instance UIDs.

    Raises:
        InUse: another node uses it.
        OSError: it cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._lock = open(folder / "lock", "w")  # noqa: SIM115 – held as long as the node runs
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InUse(f"another node uses the folder '{folder}'") from None
        for name in FOLDERS:
            remove_unfinished(folder / name)
            sync(folder)

    def close(self) -> None:
        self._lock.close()

    def received(self, uid: str) -> Path:
        return self.folder / "received" / f"{uid}.dcm"

    def derived(self, uid: str) -> Path:
        return self.folder / "derived" / f"{uid}.dcm"

    def map(self, uid: str) -> Path:
        """The parametric map of the uncertainty."""
        return self.folder / "derived" / f"{uid}.map.dcm"

    def _files(self, uid: str) -> dict[str, Path]:
        """An image's files, by the endings of their names in the folder ``dead``."""
        return {".dcm": self.received(uid), ".derived.dcm": self.derived(uid), ".map.dcm": self.map(uid)}

    def remove(self, uid: str) -> None:
        """Remove an image's files, but not from the dead ones."""
        for path in self._files(uid).values():
            path.unlink(missing_ok=True)

    def bury(self, uid: str, reason: str) -> None:
        """Put an image's files into the folder ``dead``, beside a text with the reason. The others remain."""
        dead = self.folder / "dead"
        write_durably(dead / f"{uid}.txt", lambda path: path.write_text(f"{reason}\n", encoding="utf-8"))
        for ending, path in self._files(uid).items():
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                os.link(path, dead / f"{uid}{ending}")
        sync(dead)

    def forget_dead(self, uid: str) -> None:
        """Remove an image from the folder ``dead``."""
        for ending in (".txt", *self._files(uid)):
            (self.folder / "dead" / f"{uid}{ending}").unlink(missing_ok=True)

    def tidy(self, keep: dict[str, set[str]]) -> None:
        """Remove files that a killed node left: by folder, all but those of the images to keep."""
        for name, uids in keep.items():
            for path in (self.folder / name).iterdir():
                if uid_of(path) not in uids:
                    path.unlink()

    def uids(self) -> set[str]:
        """Return the images in the folder ``received``."""
        return {uid_of(path) for path in (self.folder / "received").iterdir()}


def uid_of(path: Path) -> str:
    for ending in (".map.dcm", ".derived.dcm", ".dcm", ".txt"):
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.name
