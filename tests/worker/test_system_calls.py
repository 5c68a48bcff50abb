"""What each task asks of the kernel in a step, by its way of running. The same as `strace -c` counts in real tasks.

What is done by the clock (a ps task's ticks, a worker's words to its launcher) is not done here.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import time
from collections import defaultdict

import near_towers
import pytest
from kernel_calls import KernelCalls
from linked import Linked

from evener.testing import one_process, row_recipe

WARM, COUNTED = 3, 50

#: Where both ends lie in one memory, only words travel: one of each kind to say, to wait and to hear.
TELL, WAIT, HEAR = {"socket.send": 1}, {"poll.poll": 1}, {"socket.recv_into": 1}
#: A server waits for everything at once, then asks which link it is.
WOKEN = {"poll.poll": 1, "epoll.poll": 1}
LEDGER = {"write": 1}
#: Between hosts a message is heard in three pieces: how long its header is, the header, the payload.
TELL_A_HOST, HEAR_A_HOST = {"socket.sendmsg": 1}, {"socket.recv_into": 3}


@pytest.fixture(autouse=True)
def nothing_of_others_is_closed_meanwhile():
    """What earlier tests have left in cycles would be closed whenever the collector comes by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def each(calls: KernelCalls) -> dict[str, float]:
    """Of one update."""
    return {name: count / COUNTED for name, count in calls.seen.items()}


def linked(links, directory, **options):
    """Of one update, what each task asks."""
    with Linked(row_recipe(), directory, links, train_steps=10_000, batch_size=10, **options) as run:
        run.steps(WARM)
        before, run.counting = run.cluster.step, True
        run.steps(COUNTED)
        run.counting = False
        assert run.cluster.step == before + COUNTED
    return {task: each(calls) for task, calls in run.calls.items()}


def test_one_process_writes_its_ledger_and_asks_nothing_else(tmp_path):
    session, *_ = one_process(row_recipe(), tmp_path, batch_size=10, train_steps=10_000, save_checkpoint_secs=None)
    with session:
        for _ in range(WARM):
            session.step()
        with KernelCalls() as calls:
            for _ in range(COUNTED):
                session.step()

    assert each(calls) == LEDGER


def test_in_shared_memory_a_worker_asks_three_times_and_its_server_five_times(tmp_path):
    calls = linked("shared", tmp_path, mode="async", ps=1, workers=1)

    assert calls == {"worker:0": TELL | WAIT | HEAR, "ps:0": WOKEN | HEAR | LEDGER | TELL}


@pytest.mark.parametrize("links", ["tcp", "tcp with keys"])
def test_between_hosts_each_end_hears_a_message_in_three_pieces(links, tmp_path):
    """A payload of less than 256 KB, and an answer that is there when the worker looks: else it looks and waits first.

    With keys each further 512 KB are one piece more, at both ends.
    """
    calls = linked(links, tmp_path, mode="async", ps=1, workers=1)

    assert calls == {"worker:0": TELL_A_HOST | HEAR_A_HOST, "ps:0": WOKEN | HEAR_A_HOST | LEDGER | TELL_A_HOST}


def test_two_workers_in_step_are_heard_and_answered_each_and_written_about_once(tmp_path):
    calls = linked("shared", tmp_path, mode="sync", ps=1, workers=2)

    twice = {name: 2 for name in WOKEN | HEAR | TELL}
    assert calls == {"worker:0": TELL | WAIT | HEAR, "worker:1": TELL | WAIT | HEAR, "ps:0": twice | LEDGER}


@pytest.mark.parametrize("count", [2, 3])
def test_a_tower_rings_at_all_others_and_hears_each_of_them_once(count, tmp_path):
    sessions = near_towers.towers(row_recipe(), tmp_path, count, batch_size=10, train_steps=10_000)
    calls = defaultdict(KernelCalls)
    for _ in range(WARM):
        near_towers.step(sessions, lambda rank: KernelCalls())
    for _ in range(COUNTED):
        near_towers.step(sessions, calls.__getitem__)
    near_towers.close(sessions)

    ringing = {"socket.send": count - 1, "poll.poll": 1, "socket.recv": count - 1}
    assert {rank: each(found) for rank, found in calls.items()} == {
        rank: ringing | (LEDGER if rank == 0 else {}) for rank in range(count)
    }


def test_what_is_asked_of_the_kernel_is_counted_whoever_asks_it_and_nothing_else(tmp_path):
    here, there = socket.socketpair()
    poll, epoll = select.poll(), select.epoll()
    with here, there, epoll, KernelCalls() as calls:
        poll.register(here, select.POLLIN)
        epoll.register(here, select.EPOLLIN)
        here.fileno()
        time.monotonic()
        there.send(b"1")
        poll.poll(0)
        here.recv_into(bytearray(1))
        with KernelCalls() as others:
            os.getpid()
        time.sleep(0)
        (tmp_path / "a").write_text("b")
        select.select([], [], [], 0)

    assert others.seen == {"getpid": 1}
    expected = {"epoll.register": 1, "socket.send": 1, "poll.poll": 1, "socket.recv_into": 1, "sleep": 1, "select": 1}
    assert expected.items() <= calls.seen.items()
    assert calls.seen["open"] == 1
    assert calls.seen["TextIOWrapper.write"] == 1
    assert not calls.seen.keys() & {"socket.fileno", "poll.register", "monotonic"}
