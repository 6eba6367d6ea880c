"""Interleaved timing: all variants once per round, and ratios within rounds."""

from __future__ import annotations

import pytest

from benchmarks.interleave import interleave, median_ratio


def test_all_variants_run_once_per_round_in_turn() -> None:
    calls: list[str] = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_a_ratio_is_the_median_of_the_rounds_not_of_the_medians() -> None:
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0
    with pytest.raises(ValueError, match=r"zip\(\)"):
        median_ratio([1.0], [1.0, 2.0])
