"""What the page holds in memory for each browser tab, and how often an address may ask."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from client.api import Client
from client.formats.source import Source
from client.results import Upscaled
from client.web.display import Display


class Cancelled(Exception):
    """The user cancelled the work, or left."""


class Work:
    """The upscaling in progress of a session; ``cancel`` ends it on the server as well."""

    def __init__(self) -> None:
        self.started = False
        self.cancelled = threading.Event()
        self._client: Client | None = None

    def use(self, client: Client) -> None:
        """Name the client to close when the work is cancelled.

        Raises:
            Cancelled: it was cancelled before.
        """
        self._client = client
        if self.cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        self.cancelled.set()
        if self._client is not None:
            self._client.close()  # which cancels its requests


@dataclass
class Session:
    """A browser tab: its image, its result, and the work in progress."""

    name: str = ""
    """Name of the uploaded file, without its suffix."""
    upload: Path | None = None
    """Where the uploaded file was, a path made from its content."""
    given: Source | None = None
    """The image as uploaded."""
    source: Source | None = None
    """The image as shown and upscaled: reduced first if the user wants that."""
    no_dicom: str = ""
    """Why there is no DICOM of the result; "" if there is."""
    upscaled: Upscaled | None = None
    display: Display | None = None
    reading: bool = False
    """Whether an upload is being read."""
    work: Work | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while deciding what begins: reading or work."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """Secret part of the addresses of its pictures, new for every result."""

    def busy(self) -> str:
        """Return what is being done, in words; "" if nothing is."""
        if self.work is not None:
            return "an image is being upscaled"
        return "another image is being read" if self.reading else ""

    def size(self) -> int:
        """Return its memory, in bytes."""
        arrays: list[NDArray[Any]] = []
        for source in {id(source): source for source in (self.given, self.source) if source is not None}.values():
            arrays.append(source.image)
            if source.original is not None:
                arrays += [source.original.stored, source.original.padding]
        if self.upscaled is not None:
            arrays += [a for a in (self.upscaled.image, self.upscaled.spread) if a is not None]
        return sum(array.nbytes for array in arrays) + (0 if self.display is None else self.display.size())


class Sessions:
    """All sessions, least recently used first. Beyond ``memory`` bytes, those that wait for nothing are forgotten."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def get(self, key: str | None) -> Session | None:
        """Return a tab's session; None if it has none."""
        with self._lock:
            session = self._sessions.get(key or "")
            if session is not None:
                self._sessions.move_to_end(key or "")
            return session

    def of(self, key: str | None) -> Session:
        """Return a tab's session, new if it has none."""
        key = key or ""
        with self._lock:
            session = self._sessions.setdefault(key, Session())
            self._sessions.move_to_end(key)
            return session

    def find(self, token: str) -> Session | None:
        """Return the session with this token."""
        with self._lock:
            return next((s for s in self._sessions.values() if secrets.compare_digest(s.token, token)), None)

    def with_upload(self, upload: Path) -> Session | None:
        """Return a session whose image was uploaded to this path."""
        with self._lock:
            return next((s for s in self._sessions.values() if s.upload == upload), None)

    def working(self) -> int:
        """Return the number of sessions whose work has not ended."""
        with self._lock:
            return sum(session.work is not None for session in self._sessions.values())

    def drop(self, key: str | None) -> None:
        """Forget a session and cancel its work."""
        with self._lock:
            session = self._sessions.pop(key or "", None)
        if session is not None and session.work is not None:
            session.work.cancel()

    def trim(self) -> None:
        """Forget sessions until the others fit into memory; the last used one always stays."""
        with self._lock:
            total = sum(session.size() for session in self._sessions.values())
            for key, session in list(self._sessions.items())[:-1]:
                if total <= self._memory:
                    return
                if session.work is None:
                    total -= session.size()
                    del self._sessions[key]


class Rate:
    """Allows each address a number of calls per minute."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._calls: dict[str, deque[float]] = {}

    def wait(self, address: str) -> float:
        """Count a call and return 0 or, if there were too many, the seconds until the next one is allowed."""
        now = time.monotonic()
        with self._lock:
            for other in [key for key, calls in self._calls.items() if calls[-1] < now - 60]:
                del self._calls[other]
            calls = self._calls.setdefault(address, deque())
            while calls and calls[0] < now - 60:
                calls.popleft()
            if len(calls) >= self.limit:
                return calls[0] + 60 - now
            calls.append(now)
            return 0.0
