"""Signals that would end us, while something has to be brought to an end first."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from sealrun.interruption import held_back, interruption

if TYPE_CHECKING:
    from collections.abc import Iterator

EACH = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """Whoever started the tests may ignore hangups."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in EACH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", EACH)
def test_a_signal_waits_for_the_end_of_what_must_not_be_torn(number: signal.Signals) -> None:
    """The block is done first; afterwards signals do what they did before."""
    before = signal.getsignal(number)
    done: list[str] = []

    def struck() -> None:
        with held_back():
            os.kill(os.getpid(), number)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        struck()
    assert done == ["all of it"]
    assert signal.getsignal(number) == before


def test_a_signal_counts_also_where_the_block_fails() -> None:
    """Who wanted an end gets it: trouble at the same time takes nothing from that."""

    def failing() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            raise OSError

    with pytest.raises(KeyboardInterrupt):
        failing()


def test_a_second_signal_strikes_at_once() -> None:
    """An impatient user is not kept waiting."""

    def struck_twice() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        struck_twice()


def test_what_our_caller_ignores_stays_ignored() -> None:
    """A hangup of a run under nohup(1) neither ends nor stops anything."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    noticed = threading.Event()
    with held_back(), interruption(noticed):
        os.kill(os.getpid(), signal.SIGHUP)
        assert not noticed.is_set()


@pytest.mark.parametrize("number", EACH)
def test_while_an_experiment_runs_a_signal_is_a_notice(number: signal.Signals) -> None:
    """Nothing is raised, however many come."""
    noticed = threading.Event()
    with interruption(noticed):
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert noticed.is_set()
