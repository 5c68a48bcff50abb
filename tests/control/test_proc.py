"""A task that was stopped is named, with what lets it go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evener.control.proc import PERIOD, Stopped, end_session, is_stopped, process_seconds, session_of
from evener.report import Status


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def until(condition):
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def test_a_process_is_stopped_between_sigstop_and_sigcont(process):
    assert not is_stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(process.pid))
    process.send_signal(signal.SIGCONT)
    until(lambda: not is_stopped(process.pid))


def test_a_process_that_is_gone_is_not_stopped():
    assert not is_stopped(2**22 + 1)


def test_a_stopped_task_is_told_of_once_a_second_until_it_goes_on(process):
    now, reports = [100.0], []
    stopped = Stopped(reports.append, lambda: now[0])
    process.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(process.pid))
    for _ in range(4):
        now[0] += PERIOD / 2
        stopped.look({"worker:1": process.pid})
    process.send_signal(signal.SIGCONT)
    until(lambda: not is_stopped(process.pid))
    now[0] += PERIOD
    stopped.look({"worker:1": process.pid})

    what = f"SIGCONT: process {process.pid} is stopped (kill -CONT {process.pid} lets it go on)"
    assert reports == [
        Status("worker:1", "waiting", waiting_for=f"{what} (0 s)"),
        Status("worker:1", "waiting", waiting_for=f"{what} (1 s)"),
        Status("worker:1", "training"),
    ]


def test_the_age_of_this_process_is_what_the_system_tells_of_it(monkeypatch):
    ticks = os.sysconf("SC_CLK_TCK")
    stat = f"7 (a name) with a bracket) S {' '.join(['1'] * 18)} {900 * ticks} 1"
    told = {"/proc/self/stat": stat, "/proc/uptime": "1000.5 3.25"}
    monkeypatch.setattr(Path, "read_text", lambda path: told[str(path)])
    assert process_seconds() == 100.5

    told["/proc/self/stat"] = "of another system"
    assert process_seconds() == 0.0


#: A session with three more processes: in its leader's group, in one of its own, and in another session.
SESSION = """
import subprocess, sys, time
start = lambda **how: subprocess.Popen(["sleep", "1000"], **how).pid
print(start(), start(process_group=0), start(start_new_session=True), flush=True)
if "stay" in sys.argv: time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("leader", ["lives", "is dead"])
def test_a_session_ends_whole_and_no_other(leader):
    """Nobody has waited for a leader that is dead: its number is its own."""
    command = [sys.executable, "-c", SESSION, *["stay"] * (leader == "lives")]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as first:
        beside, apart, elsewhere = map(int, first.stdout.readline().split())
        if leader == "is dead":
            os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        try:
            assert set(session_of(first.pid)) == {beside, apart}
            end_session(first.pid)
            until(lambda: session_of(first.pid) == [])
            assert session_of(elsewhere) == []
            os.kill(elsewhere, 0)  # it lives
        finally:
            first.kill()
            os.kill(elsewhere, signal.SIGKILL)
