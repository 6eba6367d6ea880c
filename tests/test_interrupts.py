"""Signals end the command at once, or at the end of what must not be interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from pipeline.interrupts import SIGNALS, Interrupted, install, uninterrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_at_once(number: signal.Signals) -> None:
    with pytest.raises(Interrupted) as error:
        signal.raise_signal(number)
    assert error.value.args == (number,)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_end_of_the_outermost_block(number: signal.Signals) -> None:
    reached = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(number)
                reached.append("inner")
            reached.append("outer")
        reached.append("behind")

    with pytest.raises(Interrupted) as error:
        work()
    assert error.value.args == (number,)
    assert reached == ["inner", "outer"]


def test_a_block_without_a_signal_ends_as_it_would() -> None:
    with uninterrupted():
        pass
    with pytest.raises(OSError, match="full"), uninterrupted():
        raise OSError("full")


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    install()
    signal.raise_signal(signal.SIGHUP)
