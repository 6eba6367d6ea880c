"""Interleaved timing: where a machine's speed changes by the minute, only ratios within a round mean anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from tqdm import tqdm

K = TypeVar("K")


def interleave(variants: Mapping[K, Callable[[], object]], rounds: int, label: str = "rounds") -> dict[K, list[float]]:
    """Run every variant once per round; return the seconds of every round, by variant."""
    seconds: dict[K, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(rounds), desc=label):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def median_ratio(a: Iterable[float], b: Iterable[float]) -> float:
    """Return the median over the rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))
