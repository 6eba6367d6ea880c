"""The durable list of images: what is written here survives the node's being killed, and the machine's losing power.

received ──upscale──▶ upscaled ──send──▶ sent
    ╰────────────────────┴── N tries ──▶ dead
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["received", "upscaled", "sent", "dead"]
STATES: tuple[State, ...] = ("received", "upscaled", "sent", "dead")
Found = Literal["new", "same", "dead", "other"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    uid TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('received', 'upscaled', 'sent', 'dead')),
    tries INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL,
    received REAL NOT NULL,
    problem TEXT
);
CREATE INDEX IF NOT EXISTS waiting ON images (state, due);
"""


@dataclass(frozen=True)
class Entry:
    """An image that waits."""

    uid: str
    """Its SOP Instance UID."""
    tries: int
    """Failed tries in its state."""
    due: float
    """When to try again, in seconds since 1970."""


class Queue:
    """Thread-safe. Raises sqlite3.Error where the file cannot be read or written."""

    def __init__(self, file: Path) -> None:
        self._lock, self._taking = threading.Lock(), threading.Lock()
        self._taken: set[str] = set()
        """The images that threads of this process are at, so that none is taken twice."""
        self._changed = threading.Condition()
        self.changes = 0
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        for setting in ("journal_mode=WAL", "synchronous=FULL"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.executescript(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _ask(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            return self._database.execute(sql, values).fetchall()

    def find(self, uid: str, digest: str) -> Found:
        """Return whether an image is known, with the same content or another."""
        rows = self._ask("SELECT digest, state FROM images WHERE uid = ?", uid)
        if not rows:
            return "new"
        if rows[0][0] != digest:
            return "other"
        return "dead" if rows[0][1] == "dead" else "same"

    def add(self, uid: str, digest: str) -> None:
        """Add an image that is on disk, or a dead one again."""
        now = time.time()
        self._ask(
            "INSERT INTO images (uid, digest, state, due, received) VALUES (?, ?, 'received', ?, ?) "
            "ON CONFLICT (uid) DO UPDATE SET state = 'received', tries = 0, due = excluded.due, problem = NULL",
            *(uid, digest, now, now),
        )
        self.wake()

    def next(self, state: State, taken: Collection[str] = ()) -> Entry | None:
        """Return the image that is due first, or was; None if there is none but those ``taken``."""
        marks = ",".join("?" * len(taken))
        rows = self._ask(
            f"SELECT uid, tries, due FROM images WHERE state = ? AND uid NOT IN ({marks}) ORDER BY due LIMIT 1",
            *(state, *taken),
        )
        return Entry(*rows[0]) if rows else None  # type: ignore[arg-type]

    @contextmanager
    def take(self, state: State) -> Iterator[tuple[Entry | None, float]]:
        """Take the next image that is due, for the block; else None, and for how many seconds to wait at most."""
        with self._taking:
            entry = self.next(state, self._taken)
            pause = 60.0 if entry is None else entry.due - time.time()
            if entry is not None and pause > 0:
                entry = None
            if entry is not None:
                self._taken.add(entry.uid)
        try:
            yield entry, min(max(pause, 0.0), 60.0)
        finally:
            if entry is not None:
                with self._taking:
                    self._taken.discard(entry.uid)
                self.wake()  # who waits for its next state could not take it before

    def move(self, uid: str, state: State, problem: str | None = None) -> None:
        """Put an image into another state."""
        self._ask(
            "UPDATE images SET state = ?, tries = 0, due = ?, problem = ? WHERE uid = ?",
            *(state, time.time(), problem, uid),
        )
        self.wake()

    def postpone(self, uid: str, pause: float, problem: str) -> None:
        """Count a failed try, and let the image wait for a number of seconds."""
        self._ask(
            "UPDATE images SET tries = tries + 1, due = ?, problem = ? WHERE uid = ?",
            *(time.time() + pause, problem, uid),
        )

    def wake(self) -> None:
        """Wake those who wait for a change."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def wait(self, changes: int, seconds: float) -> None:
        """Return once there have been more changes than this number of them, or after some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.changes != changes, seconds)

    def uids(self, *states: State) -> set[str]:
        marks = ",".join("?" * len(states))
        return {str(row[0]) for row in self._ask(f"SELECT uid FROM images WHERE state IN ({marks})", *states)}

    def counts(self) -> dict[State, int]:
        """Return the number of images in each state."""
        found = dict(self._ask("SELECT state, count(*) FROM images GROUP BY state"))  # type: ignore[arg-type, var-annotated]
        return {state: found.get(state, 0) for state in STATES}

    def oldest(self) -> float:
        """Return for how many seconds the oldest image that is not done has waited; 0 if there is none."""
        ((first,),) = self._ask("SELECT min(received) FROM images WHERE state IN ('received', 'upscaled')")
        return 0.0 if first is None else max(0.0, time.time() - float(first))  # type: ignore[arg-type]

    def problems(self) -> list[dict[str, object]]:
        """Return the latest images with a problem, the last one first."""
        rows = self._ask(
            "SELECT uid, state, tries, problem FROM images WHERE problem IS NOT NULL ORDER BY due DESC LIMIT 100"
        )
        return [dict(zip(("uid", "state", "tries", "problem"), row, strict=True)) for row in rows]
