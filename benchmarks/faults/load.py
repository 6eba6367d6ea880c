"""Load on a server while a fault happens, and what became of every image."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.faults.server import Server, serving, wait_until
from client import Client, UpscaleError

CLIENTS = 4
IMAGE = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)


@dataclass
class Row:
    """What happened in a scenario."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    """"right", "wrong", "refused: REASON" or "lost: REASON" ⇒ images."""
    recovered: float | None = None
    """Seconds from the fault to the next answer to a request that was sent after it."""
    memory: tuple[float, float] | None = None
    """MB before and after."""
    note: str = ""
    good: bool = True

    @property
    def all_right(self) -> bool:
        """Whether every image was upscaled rightly: none lost, none refused."""
        return set(self.outcomes) == {"right"}

    @property
    def lost(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith(("wrong", "lost")))


def load(
    server: Server,
    row: Row,
    seconds: float,
    fault: Callable[[], object],
    connect: Callable[[], Client] | None = None,
) -> None:
    """Upscale with several clients; cause the fault after a quarter of the time.

    Args:
        server: its memory is measured.
        row: gets outcomes, the longest gap and memory.
        seconds: time under load.
        fault: causes the fault.
        connect: returns a client. None: one of the server.
    """
    connect = connect or partial(Client, server.url, wait=60)
    stop = threading.Event()
    answers: list[tuple[float, float]] = []
    lock = threading.Lock()
    with connect() as first:
        expected = first.upscale(IMAGE, seed=1).image

    def work() -> None:
        with connect() as client:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    outcome = "right" if np.array_equal(client.upscale(IMAGE, seed=1).image, expected) else "wrong"
                except UpscaleError as error:
                    outcome = f"refused: {type(error).__name__}"
                except Exception as error:  # an answer that is none
                    outcome = f"lost: {type(error).__name__}"
                with lock:
                    row.outcomes[outcome] += 1
                    answers.append((began, time.monotonic()))

    before = server.memory_mb()
    with ThreadPoolExecutor(CLIENTS) as pool:
        futures = [pool.submit(work) for _ in range(CLIENTS)]
        time.sleep(seconds / 4)
        at = time.monotonic()
        try:
            fault()
            time.sleep(3 * seconds / 4)
            wait_until(lambda: any(began > at for began, _ in answers), 60)
        finally:
            stop.set()
        for future in futures:
            future.result()
    later = sorted(end - at for began, end in answers if end > at)
    gaps = [b - a for a, b in zip([0.0, *later], later, strict=False)]
    row.recovered = max(gaps)
    row.memory = before, server.memory_mb()


def faulty(folder: Path, name: str, seconds: float, fault: Callable[[Server], object], *options: str) -> Row:
    """Return the row of a fault under load that every image must survive."""
    row = Row(name)
    with serving(folder, *options) as server:
        load(server, row, seconds, lambda: fault(server))
        row.note = f"{len(server.restarts())} restarts"
    row.good = row.all_right
    return row
