"""A limit on lines of one kind in the log, so that requests cannot flood it."""

from __future__ import annotations

import math
from dataclasses import dataclass

LINES_PER_MINUTE = 60
MINUTE = 60.0


@dataclass
class LogLimit:
    """Lines of one kind that were logged and omitted since ``began``, in monotonic seconds."""

    began: float = -math.inf
    logged: int = 0
    omitted: int = 0

    def admit(self, now: float) -> str | None:
        """Return what to append to the next line, such as how many were omitted; None if it must be omitted."""
        note = ""
        if now - self.began >= MINUTE:
            note = f" ({self.omitted} more before were not logged)" if self.omitted else ""
            self.began, self.logged, self.omitted = now, 0, 0
        if self.logged == LINES_PER_MINUTE:
            self.omitted += 1
            return None
        self.logged += 1
        return note
