"""What the node tells of itself: log lines that name no patient, counters, and present problems."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque

from client.terminal import on_one_line

LOG = logging.getLogger("client.node")
RECENT = 100
"""Number of refused images that are remembered."""


class Journal:
    """Counters since the start, by name, and what is wrong at present. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.refused: deque[dict[str, str]] = deque(maxlen=RECENT)
        self.problems: dict[str, str] = {}
        """Server, destination or disk ⇒ what is wrong with it."""

    def say(self, line: str, count: str | None = None) -> None:
        LOG.info("%s", on_one_line(line))
        if count is not None:
            with self._lock:
                self.counts[count] += 1

    def refuse(self, uid: str, caller: str, reason: str) -> None:
        with self._lock:
            self.refused.append({"uid": uid, "from": caller, "reason": reason})
        self.say(f"refused {uid or 'an image'} from {caller}: {reason}", "refused")

    def down(self, what: str, problem: str) -> None:
        """Log a problem with the server, the destination or the disk, unless it is the one of before."""
        with self._lock:
            before = self.problems.get(what)
            self.problems[what] = problem
        if before != problem:
            self.say(f"{what} down, trying again: {problem}", f"{what}_failures")

    def up(self, what: str) -> None:
        with self._lock:
            before = self.problems.pop(what, None)
        if before is not None:
            self.say(f"{what} is back")
