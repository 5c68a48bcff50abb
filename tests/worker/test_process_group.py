"""Real processes: the sum is right, the ends are seen, and whoever is missing is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

#: Rank 0 opens the store and prints where; the others are told. Then each does what its arguments say.
TOWER = """
import sys, time, os, signal, hashlib
import torch
from evener.state.tensors import CPU
from evener.worker.allreduce.meeting import listening_store, store_at
from evener.worker.allreduce.process_group import ProcessGroup

rank, size, patience, what = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
way = sys.argv[5]
near = way == "near"
if way == "refused" and rank == 1:
    del os.memfd_create
if rank == 0:
    store, address = listening_store("127.0.0.1", 100.0)
    print(address, flush=True)
else:
    store = store_at(sys.stdin.readline().strip(), 100.0)
def hear(report):
    if "Gloo" in getattr(report, "text", ""):
        print("warned", flush=True)
    if what == "late" and getattr(report, "waiting_for", ""):
        print("waits", report.waiting_for.partition(" (")[0], flush=True)


group = ProcessGroup(
    store, rank=rank, size=size, device=CPU, shared=False, one_machine=way != "far", start=100.0, patience=patience,
    report=hear, clock=(lambda: 0.0) if what == "gloo's clock" else time.monotonic, lost=lambda: "",
)
if way != "far":  # others of this process take it for the only one, and what follows is as it was
    group.hide()
assert torch.distributed.is_initialized() == (way == "far")
flat = torch.randn(4001, generator=torch.Generator().manual_seed(rank))
mine = flat.clone()
count = torch.full((5,), rank, dtype=torch.uint8)
settled = []
if what == "late" and rank == 1:
    print("late", flush=True)
    sys.stdin.readline()
group.sum([flat, count], "update 1", lambda: settled.append(1))
words = group.gather("ä" * rank)
shared = group.share(b"x" * 100_000 if rank == 0 else b"")
assert settled == [1] and words == ["ä" * each for each in range(size)] and shared == b"x" * 100_000
assert (group._memory is not None) == near
assert group.share(b"") == b"" and count.tolist() == [sum(range(size))] * 5
all_ = [torch.randn(4001, generator=torch.Generator().manual_seed(each)) for each in range(size)]
expected = sum(all_[1:], all_[0])
assert torch.equal(flat, expected) if size == 2 or near else torch.allclose(flat, expected, atol=1e-6)
print("sum", hashlib.sha256(flat.numpy().tobytes()).hexdigest(), flush=True)
if what in ("kill", "stop", "gloo's clock"):
    if rank == size - 1:
        os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGSTOP)
    try:
        group.sum([flat, count], "update 2", lambda: None)
    except Exception as error:
        print(type(error).__name__, error.what, flush=True)
    group.close(failed=True)
else:
    group.close()
    assert not torch.distributed.is_initialized()
"""


#: Through memory of one machine; by Gloo because one tower has none to share; by Gloo between machines.
WAYS = ["near", "refused", "far"]


class Some:
    """Towers of one test; whoever is left at the end is killed."""

    def __init__(self, directory: Path, size: int, patience: float, way: str, what: str) -> None:
        (directory / "tower.py").write_text(TOWER)
        self.processes = []
        address = ""
        for rank in range(size):
            process = subprocess.Popen(
                [sys.executable, "tower.py", str(rank), str(size), str(patience), what, way], cwd=directory, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            )  # fmt: skip
            self.processes.append(process)
            address = address or process.stdout.readline()
            process.stdin.write(address)
            process.stdin.flush()

    def finish(self, *ranks: int) -> list[str]:
        said = [self.processes[rank].communicate(timeout=100) for rank in ranks or range(len(self.processes))]
        assert not any("Traceback" in err for _, err in said), said
        return [out for out, _ in said]

    def __enter__(self) -> Some:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()


@pytest.mark.parametrize("way", WAYS)
def test_two_towers_sum_bit_for_bit_on_loopback_alone_and_one_that_is_late_is_named(tmp_path, way):
    with Some(tmp_path, 2, 60.0, way, "late") as some:
        late = some.processes[1]
        assert late.stdout.readline() == "late\n"
        listening = [
            connection.laddr.ip
            for process in some.processes
            for connection in psutil.Process(process.pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert some.processes[0].stdout.readline() == "waits worker:1 at update 1\n"
        late.stdin.write("go\n")
        late.stdin.flush()
        first, second = some.finish()

    assert set(listening) == {"127.0.0.1"}
    assert first.split()[-1] == second.split()[-1]
    assert ("warned" in first, "warned" in second) == (way == "refused", False)


@pytest.mark.parametrize("way", ["near", "far"])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("kill", "PeerGone .*worker:2 is gone"),
        # whoever gives up second may see the first one leave: it still says whom both waited for
        ("stop", r"Unavailable .* has waited \d+ s for .*worker:2|PeerGone .* waited for .*worker:2"),
    ],
)
def test_whoever_is_killed_or_stopped_is_named_by_all_survivors(tmp_path, what, words, way):
    patience = 3.0 if what == "stop" else 1000.0  # of a death they know at once
    with Some(tmp_path, 3, patience, way, what) as some:
        said = some.finish(0, 1)
        some.processes[2].send_signal(signal.SIGKILL)

    for text in said:
        assert re.search(words, text), text


def test_when_gloo_gives_up_first_they_say_whom_they_waited_for(tmp_path):
    """Who else gives up at that moment is just leaving: it would be missing in a roll call."""
    with Some(tmp_path, 3, 3.0, "far", "gloo's clock") as some:
        said = some.finish(0, 1)
        some.processes[2].send_signal(signal.SIGKILL)

    for text in said:
        assert re.search("Unavailable .* has waited 3 s for .*worker:2", text), text
