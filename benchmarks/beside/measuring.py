"""One way of training in real processes: started, watched through its meter, ended by pid."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from beside.ways import Way, Work

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "benchmarks" / "peers"
sys.path[:0] = [str(PEERS), str(ROOT / "tests" / "system")]

from job import Mark, Meter  # noqa: E402 - of the peers, which are programs and know nothing of this one
from networks import Network, missing  # noqa: E402 - tools of the tests
from running import Run  # noqa: E402

SERVER, CLIENT = 0, 1  # hosts of the network
PATIENCE = 60.0  # seconds until a way has done its first updates


class Failed(Exception):
    """A way did not do its updates: its last words."""


@dataclass(frozen=True)
class Sample:
    """One measurement of one way."""

    rate: float  # gradients a second, of all its workers
    cpu_ms: float  # of all its processes, for one gradient
    begin: float  # seconds from the command to the first step
    loss: float  # mean over the last fifth of the work's first `updates`
    others: float = 0.0  # cores that all else on this machine was busy with meanwhile


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how long is measured."""

    place: Path  # with the file data.npz and the directory keys
    peers: str  # the Python that has TensorFlow and Ray; empty: those ways are left out
    network: Network | None  # None: works between hosts are left out
    seconds: float

    def can(self, work: Work, way: Way) -> bool:
        return (bool(self.peers) or not way.peer) and (self.network is not None or not work.apart)

    def measure(self, work: Work, way: Way) -> Sample:
        """Start it, wait until it has done `work.updates`, measure, end it. Raises Failed."""
        directory = Path(tempfile.mkdtemp(dir=self.place))
        path, began = directory / "meter", time.monotonic()
        meter = Meter.create(path, way.counts)
        with contextlib.ExitStack() as stack:
            stack.callback(meter.close)
            runs = [stack.enter_context(run) for run in self._start(work, way, path)]
            watch = Watch(runs, meter, way.counts)
            watch.until(work.updates // len(way.groups[0]))
            rate, cpu_ms, others = watch.window(self.seconds)
            first = min(mark.first for mark in watch.marks())
            late = slice(work.updates * 4 // 5, work.updates)
            losses = [loss for group in way.groups for loss in meter.losses(group)[late]]
            return Sample(rate, cpu_ms, first - began, statistics.fmean(losses), others)

    def _start(self, work: Work, way: Way, meter: Path) -> Iterator[Run]:
        ports = free_ports(way.ps + way.workers)
        addresses = [Network.address(host) if work.apart else "127.0.0.1" for host in (SERVER, CLIENT)]
        ps = [f"{addresses[SERVER]}:{port}" for port in ports[: way.ps]]
        workers = [f"{addresses[CLIENT]}:{port}" for port in ports[way.ps :]]
        words: list[object] = [
            self.peers if way.peer else sys.executable, PEERS / way.program, "--ps", ",".join(ps),
            "--workers", ",".join(workers), "--mode", way.mode, "--model", work.model, "--hidden", work.hidden,
            "--data", self.place / "data.npz", "--meter", meter,
        ]  # fmt: skip
        if way.keys:
            words += ["--keys", self.place / "keys"]
        environment = {"PYTHONPATH": str(ROOT / "src"), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        for role, index in way.roots:
            command = [*words, "--role", role, "--index", index]
            if work.apart:
                assert self.network
                yield self.network.start(SERVER if role == "ps" else CLIENT, command, meter.parent, **environment)
            else:
                yield Run(command, meter.parent, **environment)


@dataclass(frozen=True)
class Watch:
    """The processes of one way, and what they count."""

    runs: Sequence[Run]
    meter: Meter
    counts: int

    def marks(self) -> list[Mark]:
        return [self.meter.mark(slot) for slot in range(self.counts)]

    def until(self, steps: int) -> None:
        """Every slot has counted so many. Raises Failed when a process ends or hangs before."""
        deadline = time.monotonic() + PATIENCE
        while min(mark.steps for mark in self.marks()) < steps:
            ended = [run for run in self.runs if run.process.poll() is not None]
            if ended or time.monotonic() > deadline:
                what = "ended" if ended else f"did no {steps} steps in {PATIENCE:g} s"
                raise Failed(f"{what}: {(ended or list(self.runs))[0].said()[-600:]}")
            time.sleep(0.02)

    def window(self, seconds: float) -> tuple[float, float, float]:
        """(gradients a second, milliseconds of processor for one of them, cores that others use) from now on."""
        before, since, spent, all_spent = self.marks(), time.monotonic(), self._spent(), machine()
        time.sleep(seconds)
        after, spent, took = self.marks(), self._spent() - spent, time.monotonic() - since
        if any(one.steps == other.steps for one, other in zip(before, after, strict=True)):
            raise Failed(f"a worker stands still: {self.runs[-1].said()[-600:]}")
        rate = sum((b.steps - a.steps) / (b.at - a.at) for a, b in zip(before, after, strict=True))
        others = max(0.0, machine() - all_spent - spent) / took
        return rate, 1000 * spent / (rate * took), others

    def _spent(self) -> float:
        """Seconds of processor of all processes so far, those included that have ended and were waited for."""
        total = 0.0
        for run in self.runs:
            for process in [psutil.Process(run.process.pid), *run.tasks()]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system + times.children_user + times.children_system
        return total


def machine() -> float:
    """Seconds of processor that this machine has spent since it began."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def prepare(place: Path) -> None:
    """The digits as all programs read them, and keys for a ps task and two workers."""
    import numpy as np
    import torch

    from evener.data import digits
    from evener.data.dataset import as_data
    from evener.transport import keys

    train = as_data(digits.load()).train
    inputs, target = train.batch(torch.arange(len(train)))
    np.savez(place / "data.npz", inputs=inputs.numpy(), target=target.numpy())
    keys.new(place / "keys", keys.names(1, 2))


@contextlib.contextmanager
def hosts() -> Iterator[Network | None]:
    """Two hosts on this machine, where it allows that (root, Linux)."""
    if reason := missing():
        print(f"works between two hosts are left out: {reason}", file=sys.stderr)
        yield None
        return
    with Network(2) as network:
        yield network


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Another process that always wants a core, where that is wanted; it ends by itself when this one has gone."""
    if not wanted:
        yield
        return
    spin = f"import os\nwhile os.getppid() == {os.getpid()}:\n    sum(range(100000))"
    with Run([sys.executable, "-c", spin], ROOT):
        yield
