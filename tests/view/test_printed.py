"""What a recipe prints in a task reaches the person: whole lines, named, bounded; and everything is in the log."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import threading

import pytest

from evener.control import control
from evener.control.control import TaskEnd
from evener.report import Line
from evener.view.printed import LINES, LONGEST, Printed, passed_on


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def printed(log, told, clock):
    return Printed(log, lambda text: told.append(text) or True, clock=clock, rest="logs/worker-0.log")


def test_whole_lines_are_passed_on_and_the_log_has_everything(printed, log, told):
    print("loss", 0.5, file=printed)
    print("half ", end="", file=printed)
    assert told == ["loss 0.5"]
    print("and half\n\nlast", end="", file=printed)
    assert told == ["loss 0.5", "half and half"]  # an empty line says nothing
    printed.finish()
    assert told == ["loss 0.5", "half and half", "last"]
    assert log.getvalue() == "loss 0.5\nhalf and half\n\nlast\n"


def test_what_would_break_a_table_is_taken_out(printed, told):
    printed.write("\x1b[2A\x1b[31mred\x1b[0m\a\tand\x1b]0;title\x07 plain\r\n")
    printed.write("10 %\r50 %\r100 %\n")
    printed.write("x" * 10_000 + "\n")
    assert told[:2] == ["red    and plain", "100 %"]
    assert len(told[2]) == LONGEST and told[2].endswith("…")


def test_so_many_lines_a_second_are_passed_on_and_the_person_is_told_where_the_others_are(printed, log, told, clock):
    for second in range(3):
        for number in range(1000):
            print(second, number, file=printed)
        clock.now += 1

    rest = "(prints more than is shown: the rest is in logs/worker-0.log)"
    assert told == [text for second in range(3) for text in [*(f"{second} {n}" for n in range(LINES)), rest]]
    assert len(log.getvalue().splitlines()) == 3000


def test_a_line_that_nobody_takes_is_not_waited_for_and_it_is_told_that_lines_are_missing(log, clock):
    told, free = [], False

    def tell(text):
        if free:
            told.append(text)
        return free

    printed = Printed(log, tell, clock=clock, rest="the log")
    print("lost", file=printed)
    free = True
    print("shown", file=printed)
    assert told == ["shown"]
    free = False
    print("lost again", file=printed)
    free = True
    assert log.getvalue() == "lost\nshown\nlost again\n"


def test_a_process_that_was_forked_off_has_the_log_alone(printed, log, told, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: -1)
    print("from a loader", file=printed)
    assert (told, log.getvalue()) == ([], "from a loader\n")


def test_all_else_of_the_stream_is_there(tmp_path, told, clock):
    with (tmp_path / "log").open("w") as log:
        printed = Printed(log, lambda text: told.append(text) or True, clock=clock, rest="")
        assert (printed.fileno(), printed.encoding, printed.isatty()) == (log.fileno(), log.encoding, False)
        printed.buffer.write(b"bytes\n")
        printed.writelines(["a\n", "b\n"])
        printed.flush()
    assert told == ["a", "b"]
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b", "bytes"]


def test_print_itself_is_passed_on_inside_the_block_and_at_once_in_the_log(tmp_path, told, clock, monkeypatch):
    with (tmp_path / "log").open("w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        with passed_on(lambda text: told.append(text) or True, clock=clock, rest=""):
            print("größer")
            assert (tmp_path / "log").read_text() == "gr\\xf6\\xdfer\n"  # a task may be killed at any moment
            print("unfinished", end="")
        assert sys.stdout is log
        print("after")
    assert told == ["größer", "unfinished"]


# --- the line to the launcher


@pytest.fixture
def line(monkeypatch):
    """A task's end of it, and the launcher's."""
    monkeypatch.setattr(TaskEnd, "_listen", lambda _: None)  # it would end this process at the end of the line
    mine, theirs = socket.socketpair()
    with mine:
        task = TaskEnd(theirs.detach())
        yield task, mine
        task._socket.close()


def test_an_offer_is_taken_as_long_as_the_launcher_reads(line):
    task, mine = line
    mine.settimeout(60)
    assert task.offer(Line("worker:0", "printed"))
    assert control.reports().feed(mine.recv(1000)) == [Line("worker:0", "printed")]

    offered = 0
    while task.offer(Line("worker:0", "x" * 1000)):
        offered += 1
        assert offered < 100_000
    assert offered > 0


def test_an_offer_from_a_handler_that_interrupted_a_report_is_refused_and_no_deadlock(line):
    task, _ = line
    with task._lock:
        answers: list[bool] = []
        thread = threading.Thread(target=lambda: answers.append(task.offer(Line("worker:0", "printed"))))
        thread.start()
        thread.join(60)
    assert answers == [False]


def test_a_log_on_a_full_disk_ends_nothing_and_what_is_printed_is_told_all_the_same(clock, told, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        with passed_on(lambda text: told.append(text) or True, clock=clock, rest="log"):
            for _ in range(3):
                print("a line", flush=True)
            print("a bar", file=sys.stderr, flush=True)
        assert sys.stdout is full
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert told == ["a line"] * 3
