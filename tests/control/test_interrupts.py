"""Signals that ask a run to end are collected while it lasts, and are what they were afterwards."""

import importlib
import signal
import subprocess
import sys
import threading
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
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
    remember()
    yield signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


#: Modules in which one gets lost: as one that tries whether another module is there, and where a lock is let go.
SWALLOWS = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except BaseException:
    pass
"""
UNRAISABLE = """
import signal, weakref
class Lock: pass
lost = weakref.ref(lock := Lock(), lambda _: signal.raise_signal(signal.SIGINT))
del lock
"""


@pytest.fixture(params=[SWALLOWS, UNRAISABLE])
def loses(request, tmp_path, monkeypatch):
    """Imports a module in which a Ctrl-C gets lost."""
    (tmp_path / "loses_one.py").write_text(request.param)
    monkeypatch.syspath_prepend(tmp_path)
    with mock.patch("sys.unraisablehook"):
        yield lambda: importlib.import_module("loses_one")
    sys.modules.pop("loses_one", None)


@pytest.mark.usefixtures("remembered")
def test_a_ctrl_c_that_got_lost_before_the_run_began_ends_it_where_it_begins(loses):
    loses()
    with pytest.raises(KeyboardInterrupt), collected():
        raise AssertionError("the run began")


@pytest.mark.usefixtures("remembered")
def test_it_ends_one_run_and_not_the_next(loses):
    loses()
    with pytest.raises(KeyboardInterrupt), collected():
        raise AssertionError("the run began")
    with collected() as interrupts:
        assert interrupts.numbers == []


@pytest.mark.usefixtures("remembered")
def test_one_that_somebody_has_dealt_with_ends_no_run():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with collected() as interrupts:
        assert interrupts.numbers == []


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


def test_it_begins_on_a_system_without_a_signal_for_closed_terminals():
    """Windows."""
    program = (
        "import signal; del signal.SIGHUP; import evener.__main__; from evener.control.interrupts import STOPPING;"
    )
    program += "print(*STOPPING)"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.split() == [str(int(signal.SIGINT)), str(int(signal.SIGTERM))]
