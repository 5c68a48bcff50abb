"""Processes are found wherever they went, and nobody else is signalled; links break for both ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evener.commands.chaos import cutting
from evener.commands.chaos.processes import brood, look, send
from evener.commands.chaos.remains import Belongings, belongings, drafts
from evener.commands.chaos.steps import Steps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and pidfd are Linux's")
SLEEPER = [sys.executable, "-S", "-c", "input()"]


@pytest.fixture
def sleeper():
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_number_that_is_another_process_now_is_not_signalled(sleeper):
    seen, parent = look(sleeper.pid)
    assert parent == os.getpid()
    assert not send(replace(seen, born=seen.born - 1), signal.SIGKILL)
    assert sleeper.poll() is None

    assert send(seen, signal.SIGKILL)
    assert sleeper.wait(60) == -signal.SIGKILL
    assert not send(seen, signal.SIGKILL), "it is gone"


def test_who_was_there_before_is_none_of_the_brood_and_is_not_ended(sleeper):
    with brood() as family, subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as mine:
        assert [one.pid for one in family.alive()] == [mine.pid]
        family.end()
        assert mine.wait(60) == -signal.SIGKILL
    assert sleeper.poll() is None


def test_a_process_that_left_its_parent_and_session_is_found_and_ended():
    code = (
        "import os, subprocess; r, w = os.pipe();"
        f"p = subprocess.Popen({SLEEPER!r}, stdin=r, pass_fds=(w,), start_new_session=True);"  # its input has no end
        "print(p.pid, flush=True); os._exit(0)"
    )
    with brood() as family:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            pid = int(parent.stdout.readline())
            assert parent.wait(60) == 0
        assert pid in [one.pid for one in family.alive()]
        family.end()
        assert os.waitpid(pid, 0) == (pid, signal.SIGKILL), "it is a child of this process now"


def test_a_task_is_the_leader_of_its_session_and_neither_its_children_nor_its_guard():
    task = (
        "import subprocess, sys; me = [sys.executable, '-S', '-c', 'input()', 'worker:1'];"
        "p = subprocess.Popen(me, stdin=subprocess.PIPE); print(p.pid, flush=True); input()"
    )
    guard = (
        "import sys; from setproctitle import setproctitle; setproctitle('evener guard of worker:1');"
        "print(flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    with (
        brood() as family,
        subprocess.Popen([sys.executable, "-c", task, "worker:1"], **pipes) as one,
        subprocess.Popen([sys.executable, "-c", guard], **pipes) as other,
    ):
        assert one.stdout.readline()
        assert other.stdout.readline()
        assert {name: found.pid for name, found in family.tasks().items()} == {"worker:1": one.pid}
        family.end()


@pytest.mark.skipif(bool(cutting.missing()), reason=cutting.missing())
def test_only_links_to_the_servers_are_cut_and_both_ends_see_it():
    code = (
        "import socket, sys; a, b = [socket.create_connection(('127.0.0.1', int(p))) for p in sys.argv[1:]];"
        "a.recv(1); b.sendall(b'x'); b.recv(1)"
    )
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [door.getsockname()[1] for door in (server, other)]
        with subprocess.Popen([sys.executable, "-S", "-c", code, *map(str, ports)]) as worker:
            link, beside = server.accept()[0], other.accept()[0]
            with link, beside:
                seen = look(worker.pid)[0]
                assert cutting.cut(replace(seen, born=seen.born - 1), Belongings(ports=frozenset(ports))) == 0
                assert cutting.cut(seen, Belongings(ports=frozenset(ports[:1]))) == 1
                assert link.recv(1) == b"", "the server sees it"
                assert beside.recv(1) == b"x", "the worker has seen it; its other link is whole"
            assert worker.wait(60) == 0


def test_what_is_held_is_found_and_told_while_it_is_there(tmp_path):
    with socket.socket(socket.AF_UNIX) as named, socket.create_server(("127.0.0.1", 0)) as door:
        named.bind(f"\0evener-test-{os.getpid()}")
        named.listen()
        held = belongings([os.getpid()])
        assert f"@evener-test-{os.getpid()}" in held.left()
        port = door.getsockname()[1]
        assert f"port {port}" in held.left()
    assert f"@evener-test-{os.getpid()}" not in held.left()
    assert f"port {port}" not in held.left()


def test_drafts_are_found(tmp_path):
    place = tmp_path / "checkpoints" / "step-00000100"
    place.mkdir(parents=True)
    (place / "manifest.json").touch()
    assert drafts(tmp_path) == []
    (place / "manifest.json.tmp.77").touch()
    assert drafts(tmp_path) == [str(place / "manifest.json.tmp.77")]


def test_steps_are_counted_while_the_ledger_is_written(tmp_path: Path):
    ledger = tmp_path / "ledger.jsonl"
    steps = Steps(ledger, ps=1)
    assert steps.look() == {}
    ledger.write_bytes(b'["u",1,[[0,0,1,1],[1,0,1,1],[2,1,1,1]]]\n["u",2,[[3,1')
    assert steps.look() == {"ps:0": 1, "worker:0": 1, "worker:1": 1}, "a gradient of two batches is one step"
    with ledger.open("ab") as file:
        file.write(b',1,2]]]\n["s",2,4,[]]\n')
    assert steps.look() == {"ps:0": 2, "worker:0": 1, "worker:1": 2}
