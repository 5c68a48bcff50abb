"""A process that is told to leave: real signals to real processes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

import pytest

from evener.control.told import LEAVE, Told

WAITS = """
import sys, threading
from evener.control.told import Told, told_to_leave
from evener.errors import Preempted
told = Told("worker:1", raises={raises})
try:
    with told_to_leave(told, grace={grace}):
        print("ready", flush=True)
        {waits}
except Preempted as left:
    print("preempted:", left)
    sys.exit(4)
"""
PATIENTLY = "while not told.reason(): threading.Event().wait(0.01)\n        print(told.reason())"
DEAF = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # in C, where no handler of Python's runs


def start(waits=PATIENTLY, *, raises=False, grace=60.0):
    program = WAITS.format(raises=raises, grace=grace, waits=waits)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", LEAVE)
def test_a_ps_task_is_asked_between_two_messages(number):
    with start() as process:
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert said == f"worker:1 was told to leave ({number.name})\n"


def test_a_worker_is_interrupted():
    with start("threading.Event().wait(600)", raises=True) as process:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert (said, process.returncode) == ("preempted: worker:1 was told to leave (SIGTERM)\n", 4)


def test_who_is_told_twice_ends_at_once():
    with start("while True: threading.Event().wait(0.01)") as process:
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
    assert process.returncode == 4


def test_a_process_that_cannot_listen_ends_when_its_grace_is_over():
    with start(DEAF, grace=0.2) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 4


def test_who_was_told_nothing_may_stay():
    assert Told("ps:0").reason() == ""
