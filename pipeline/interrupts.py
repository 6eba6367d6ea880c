"""Signals that end a command, but never between a lock and its release."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_held = threading.local()
_pending: list[int] = []


class Interrupted(KeyboardInterrupt):
    """Interrupted by the signal with this number."""


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Raise Interrupted in the main thread, at once or at the end of ``uninterrupted``."""
    if getattr(_held, "depth", 0):
        _pending.append(number)
    else:
        raise Interrupted(number)


def install() -> None:
    """Interrupt the main thread by ``SIGNALS``, except those that the caller ignores, as nohup does."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, interrupt)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put signals off until the block ends.

    Python raises in the main thread wherever it is, even just after it took the lock of a future: nobody would release
    it, and the threads that wait for it would wait forever.
    """
    _held.depth = getattr(_held, "depth", 0) + 1
    try:
        yield
    finally:
        _held.depth -= 1
        if _pending and not _held.depth and threading.current_thread() is threading.main_thread():
            raise Interrupted(_pending.pop(0))
