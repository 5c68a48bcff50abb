"""What is printed waits for nobody: not for a pipe that is full, nor for a terminal that stands, nor for a disk."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import sys
import threading

import pytest

from evener.view.outlet import Outlet, unhindered
from evener.view.shown import shown

#: So many bytes fit into a pipe of these tests, one page.
PAGE = 4096
PATIENCE = 30.0


class Pipe:
    """A pipe that is read only when the test does so."""

    def __init__(self):
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE)
        self.stream = os.fdopen(writer, "w", encoding="utf-8")

    def read_to_end(self, outlet):
        """All that was written, once the outlet is closed by another thread."""
        text = []

        def read():
            while piece := os.read(self.reader, 1 << 16):
                text.append(piece)

        reading = threading.Thread(target=read)
        reading.start()
        why = outlet.close(PATIENCE)
        self.stream.close()
        reading.join(PATIENCE)
        return b"".join(text).decode(), why


@pytest.fixture
def pipe():
    made = Pipe()
    yield made
    os.close(made.reader)
    made.stream.close()


def test_what_is_printed_comes_in_order_after_what_was_printed_before(pipe):
    pipe.stream.write("before\n")
    outlet = Outlet(pipe.stream)
    for number in range(100):
        print(number, "ä\udcff", file=outlet, flush=True)

    text, why = pipe.read_to_end(outlet)
    assert text.splitlines() == ["before", *(f"{number} ä\\udcff" for number in range(100))]
    assert why == ""


def test_a_pipe_that_nobody_reads_costs_lines_which_are_counted_and_told(pipe):
    outlet = Outlet(pipe.stream, most=2 * PAGE)
    line = "x" * 99
    for _ in range(1000):  # this returns: 100 kB, for which there is no room
        print(line, file=outlet)
    assert outlet.behind

    text, why = pipe.read_to_end(outlet)
    *lines, last = text.splitlines()
    assert set(lines) == {line}
    assert len(lines) >= 2 * PAGE // 100
    missing = 1000 - len(lines)
    assert last in [f"({many} lines were not shown: nobody took them)" for many in (missing, missing + 1)]
    assert why == ""


def test_the_lines_that_are_missing_are_told_where_they_are_missing(pipe):
    outlet = Outlet(pipe.stream, most=2 * PAGE)
    for number in range(1000):
        print(f"{number:99}", file=outlet)
    os.set_blocking(pipe.reader, False)
    while outlet.behind:
        with contextlib.suppress(BlockingIOError):
            os.read(pipe.reader, PAGE)
    os.set_blocking(pipe.reader, True)
    print("later", file=outlet)

    text, _ = pipe.read_to_end(outlet)
    told, later = text.splitlines()[-2:]
    assert told.endswith("lines were not shown: nobody took them)")
    assert later == "later"


def test_a_line_without_its_end_is_ended_before_that(pipe):
    outlet = Outlet(pipe.stream, most=PAGE)
    outlet.write("x" * 3 * PAGE)  # alone it may be longer than what is kept
    outlet.write("lost\n")
    text, _ = pipe.read_to_end(outlet)
    assert text.splitlines() == ["x" * 3 * PAGE, "(a line was not shown: nobody took them)"]


def test_the_last_words_wait_for_a_bounded_time(pipe):
    outlet = Outlet(pipe.stream)
    outlet.write("x" * 10 * PAGE)
    assert outlet.close(0.01) == "nobody reads it"


def test_a_reader_who_has_gone_is_no_error_then_nor_when_the_stream_is_flushed_later(pipe):
    outlet = Outlet(pipe.stream)
    os.close(pipe.reader)
    pipe.reader = os.open(os.devnull, os.O_RDONLY)
    for _ in range(10):
        print("a line", file=outlet)
    assert outlet.close(PATIENCE) == ""
    pipe.stream.write("what Python would flush at its exit")
    pipe.stream.flush()


def test_a_full_disk_costs_what_is_printed_then_and_is_told_by_the_one_who_closes():
    with open("/dev/full", "w") as full:
        outlet = Outlet(full)
        for _ in range(10):
            print("a line", file=outlet)
        assert outlet.close(PATIENCE) == "No space left on device"


def test_a_descriptor_that_does_not_block_is_waited_for_all_the_same(pipe):
    os.set_blocking(pipe.stream.fileno(), False)
    outlet = Outlet(pipe.stream)
    outlet.write("x" * 20 * PAGE)
    assert pipe.read_to_end(outlet) == ("x" * 20 * PAGE, "")


def test_a_terminal_that_nobody_drains_holds_nobody_up():
    leader, follower = pty.openpty()
    stream = os.fdopen(follower, "w")
    outlet = Outlet(stream, most=1 << 16)
    try:
        assert outlet.isatty()
        for _ in range(10_000):
            print("x" * 99, file=outlet)
        assert outlet.behind
    finally:
        os.close(leader)  # hangs up, and so ends the wait of the thread
    assert outlet.close(PATIENCE) == ""
    stream.close()


def test_a_process_that_was_forked_off_prints_by_itself(pipe):
    outlet = Outlet(pipe.stream)
    outlet._process = -1  # as it looks there
    print("from a child", file=outlet, flush=True)
    outlet._process = os.getpid()
    assert os.read(pipe.reader, 100) == b"from a child\n"
    outlet.close(PATIENCE)


# --- a block in which nothing waits


def test_in_the_block_print_waits_for_nobody_and_after_it_all_is_as_before(pipe, monkeypatch):
    monkeypatch.setattr(sys, "stdout", pipe.stream)
    reading = threading.Event()

    def read():
        reading.wait(PATIENCE)
        while os.read(pipe.reader, PAGE) != b"last\n":
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with unhindered() as out:
        assert out is sys.stdout
        for _ in range(3 * PAGE):
            print("x")
        while out.behind:
            reading.set()
    print("last", flush=True)
    reader.join(PATIENCE)
    assert sys.stdout is pipe.stream


def test_what_standard_output_could_not_take_is_told_on_standard_error(monkeypatch, tmp_path):
    with open("/dev/full", "w") as full, (tmp_path / "errors").open("w") as told:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", told)
        with unhindered():
            print("the figures")
    said = (tmp_path / "errors").read_text()
    assert said == "evener: not all that was printed could be written (No space left on device)\n"


@pytest.mark.parametrize("make", [io.StringIO, lambda: io.TextIOWrapper(io.BytesIO())])
def test_a_stream_that_is_no_file_is_left_as_it_is(make, monkeypatch):
    standard, stream = make(), make()
    monkeypatch.setattr(sys, "stdout", standard)
    with unhindered(stream) as out, unhindered() as other:
        assert out is stream
        assert other is sys.stdout is standard


def test_one_stream_has_one_thread(pipe, monkeypatch):
    monkeypatch.setattr(sys, "stdout", pipe.stream)
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    before = set(threading.enumerate())
    with unhindered(pipe.stream) as out:
        assert out is sys.stdout is sys.stderr
        (thread,) = set(threading.enumerate()) - before
    assert not thread.is_alive()


def test_a_run_is_shown_on_a_pipe_that_nobody_reads_and_its_end_waits_no_longer_than_it_may(pipe, monkeypatch):
    monkeypatch.setattr("evener.view.outlet.LAST_WORDS", 0.01)
    with shown(pipe.stream, tasks=["worker:0"], title="mnist") as view:
        for number in range(20_000):
            view.say(f"{number:99}")
