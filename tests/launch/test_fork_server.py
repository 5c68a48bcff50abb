"""What a launcher has of it is in `test_process`; here is what can go wrong in the server itself."""

from __future__ import annotations

import gc
import os
import socket

import msgspec
import pytest

from evener.launch.starters.fork_server import NOT_MADE, Died, Wanted, serve


def refuse() -> int:
    raise BlockingIOError(11, "Resource temporarily unavailable")


@pytest.mark.slow
def test_a_task_that_the_system_refuses_to_make_ends_with_its_reason_in_the_log_and_the_server_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fork", refuse)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, (tmp_path / "log").open("wb") as log:
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for number in (1, 2):
            order = msgspec.msgpack.encode(Wanted(number, "ps:0", {}))
            socket.send_fds(ours, [order], [log.fileno(), log.fileno()])
        ours.shutdown(socket.SHUT_WR)
        assert serve(theirs) is None
        died = [msgspec.msgpack.decode(ours.recv(1000), type=Died) for _ in range(2)]
        assert len(os.listdir("/proc/self/fd")) == before

    assert died == [Died(1, NOT_MADE), Died(2, NOT_MADE)]
    assert (tmp_path / "log").read_text().count("BlockingIOError: [Errno") == 2
