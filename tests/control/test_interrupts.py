"""Signals that ask a run to end are collected while it lasts, and are what they were afterwards."""

import signal
import subprocess
import sys
import threading
import weakref
from unittest import mock

import pytest

from evener.control.interrupts import STOPPING, collected, remember


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


@pytest.fixture
def remembered():
    before = signal.getsignal(signal.SIGINT)
    remember()
    yield signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("remembered")
def test_a_ctrl_c_that_got_lost_before_the_run_began_ends_it_where_it_begins():
    lost = weakref.ref(lock := Lock(), lambda _: signal.raise_signal(signal.SIGINT))
    with mock.patch("sys.unraisablehook") as hook:
        del lock  # as the lock of a module that was imported
    assert (lost(), hook.call_args[0][0].exc_type) == (None, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), collected():
        raise AssertionError("the run began")


class Lock:
    """Weak references may point to it."""


def test_one_that_was_not_lost_is_python_s_own(remembered):
    with collected() as interrupts:
        assert interrupts.numbers == []
    assert signal.getsignal(signal.SIGINT) is remembered
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_one_that_a_shell_has_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        remember()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_command_remembers_before_it_imports_anything_of_itself():
    """Where one may get lost: `evener.cli.main` comes later."""
    program = "import sys, evener.__main__; print('evener.cli.main' in sys.modules, 'argparse' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said == "False False\n"
