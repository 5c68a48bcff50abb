"""Signals that ask a run to end are collected while it lasts, and are what they were afterwards."""

import signal
import threading

import pytest

from evener.control.interrupts import STOPPING, collected


def handlers():
    return [signal.getsignal(number) for number in STOPPING]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_is_collected_each_time_it_comes_and_ends_nothing(number):
    with collected() as interrupts:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert interrupts.numbers == [number, number]


def test_afterwards_signals_do_what_they_did_before():
    before = handlers()
    with pytest.raises(ValueError, match="a user's"), collected():
        assert handlers() != before
        raise ValueError("a user's")
    assert handlers() == before


def test_outside_the_main_thread_signals_stay_as_they_are():
    before, seen = handlers(), []

    def run():
        with collected() as interrupts:
            seen.append((handlers(), interrupts.numbers))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, [])]
