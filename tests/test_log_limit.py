"""What is logged again and again is limited, and what was omitted is told."""

from __future__ import annotations

from pipeline.backends.log_limit import LINES_PER_MINUTE, LogLimit


def test_only_so_many_lines_are_logged_in_a_minute() -> None:
    limit = LogLimit()
    notes = [limit.admit(now=10 + i / 1000) for i in range(LINES_PER_MINUTE + 40)]
    assert notes == [""] * LINES_PER_MINUTE + [None] * 40
    assert limit.admit(now=69.9) is None


def test_the_next_minutes_first_line_tells_how_many_were_omitted() -> None:
    limit = LogLimit()
    for _ in range(LINES_PER_MINUTE + 40):
        limit.admit(now=10)
    assert [limit.admit(now) for now in (70, 71, 130)] == [" (40 more before were not logged)", "", ""]
