"""The door through which requests come to work: open, closed, and gone."""

from __future__ import annotations

import os

import pytest

from pipeline.serving.drain import VARIABLE, Closed, Door, working


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    door = Door()
    monkeypatch.setenv(VARIABLE, door.environment[VARIABLE])
    return door


def test_whoever_works_is_waited_for(door: Door) -> None:
    with working(), working():
        door.close()
        assert not door.is_idle()
    assert door.is_idle()


def test_nobody_begins_once_it_is_closed_or_gone(door: Door) -> None:
    door.close()
    for _ in range(2):
        with pytest.raises(Closed), working():
            pass
    assert door.is_idle()
    os.close(door.file)
    with pytest.raises(Closed), working():
        pass


def test_a_server_without_one_works_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with working():
        pass
