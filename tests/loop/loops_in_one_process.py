"""A program's own loop in every way of running, in this process: a thread for each task.

What depends on who is first is up to the threads, with ps tasks. A program must not draw random numbers there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path += [str(Path(__file__).parents[1] / name) for name in ("server", "worker")]
import pytest
import torch
from tasks_in_one_process import in_memory
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from towers_in_one_process import Meeting, Member

from evener.commands.account import account
from evener.errors import EvenerError
from evener.loop.loop import Loop
from evener.loop.parts import build, sorted_out
from evener.loop.remote import Remote
from evener.loop.serving import put_in_training
from evener.modes import Async
from evener.server.agreement import Expected
from evener.server.serve import serve
from evener.settings import Settings
from evener.task.owner import Tower
from evener.task.rendezvous import Fixed
from evener.task.script import Joining, Over, source_of
from evener.testing import EVENER, RUN, Cluster, cluster as in_one_process

#: name -> options, batches that an update is a mean over
WAYS: dict[str, tuple[dict, int]] = {
    "plain": ({}, 1),
    "alone": ({}, 1),
    "alone, kept": ({}, 1),
    "launched": ({}, 1),
    "2 towers": ({"towers": 2}, 2),
    "1 ps, 1 worker": ({"ps": 1, "workers": 1}, 1),
    "2 ps, 1 worker": ({"ps": 2, "workers": 1, "mode": "sync"}, 1),
    "1 ps, 2 workers": ({"ps": 1, "workers": 2}, 1),
    "2 ps, 2 workers, sync": ({"ps": 2, "workers": 2, "mode": "sync"}, 2),
    "1 ps, 1 worker, in flight": ({"ps": 1, "workers": 1, "mode": Async(in_flight=2)}, 1),
    "2 ps, 2 workers, in flight": ({"ps": 2, "workers": 2, "mode": Async(in_flight=2)}, 1),
    "1 ps, 2 workers, bounded": ({"ps": 1, "workers": 2, "mode": "bounded"}, 1),
}
BATCHES, BATCH = 6, 4
KEPT = [way for way in WAYS if way not in ("plain", "alone")]
#: A gradient that is on its way while the next is computed makes this one late by one update.
IN_FLIGHT = [way for way in WAYS if "flight" in way]
EXACT = [way for way in KEPT if WAYS[way][1] == 1 and "2 workers" not in way and way not in IN_FLIGHT]
IN_LOCKSTEP = [way for way in WAYS if WAYS[way][1] == 2]
EVERY_WAY = pytest.mark.parametrize("way", [way for way in WAYS if way != "plain"])
EVERY_KEPT_WAY = pytest.mark.parametrize("way", KEPT)
ONE_BY_ONE = pytest.mark.parametrize("way", [way for way in KEPT if WAYS[way][1] == 1 and "2 workers" not in way])


class Program:
    """Least squares in float64, with plain descent: `make` what is prepared, `loop` over it.

    Args:
        epochs, batches, batch: how much.
    """

    rate, momentum = 0.1, 0.9

    def __init__(self, *, epochs: int = 3, batches: int = BATCHES, batch: int = BATCH) -> None:
        self.epochs, self.batches, self.batch = epochs, batches, batch

    def make(self) -> list[Any]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=self.rate, momentum=self.momentum)
        return [model, optimizer, self.loader()]

    def loader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(2)
        inputs = torch.randn(self.batches * self.batch, 3, dtype=torch.float64, generator=generator)
        return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), self.batch)

    def loop(self, ev: Loop, model: nn.Module, optimizer: Any, loader: Any) -> Any:
        for epoch in range(self.epochs):
            for number, batch in enumerate(loader):
                self.step(model, optimizer, batch)
                self.stepped(ev, epoch, number)

    def step(self, model: nn.Module, optimizer: Any, batch: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    def stepped(self, ev: Loop, epoch: int, number: int) -> None:
        """After each step."""


@dataclass
class Ran:
    """How a run ended: of each worker its loop, what its program returned or raised, what it prepared, its reports."""

    loops: list[Any] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)
    cluster: Cluster | None = None

    def values(self, worker: int = 0) -> list[torch.Tensor]:
        """A worker's parameters."""
        return [p.detach().clone() for thing in self.made[worker] if isinstance(thing, nn.Module)
                for p in thing.parameters()]  # fmt: skip

    def reported(self, kind: type) -> list:
        return [report for report in self.reports if isinstance(report, kind)]


class Centred(nn.Module):
    """Its centre moves with each batch, and is another tensor each time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1).double()
        self.register_buffer("centre", torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs):
        output = self.linear(inputs)
        self.centre = 0.9 * self.centre + 0.1 * output.detach().mean()
        return output - self.centre


class Nobody:
    """In a program that was not changed."""

    chief, step, worker, stopped, state = True, 0, 0, False, {}

    def log(self, values: Any) -> None: ...

    def should_stop(self) -> bool:
        return False


def run(way: str, program: Program, directory: Path, before: Ran | None = None, **options: Any) -> Ran:
    """Run a program; with `before`, a run in the same directory, go on with it."""
    given, _ = WAYS[way]
    ran = Ran()
    if way == "plain":
        ran.made.append(program.make())
        ran.ends.append(program.loop(Nobody(), *ran.made[0]))
        return ran
    kept = {} if way == "alone" else {"logdir": str(directory)}
    everything = {"script": "train.py", "batch_size": 1, "save_checkpoint_secs": None}
    settings = Settings(**{**everything, **given, **kept, **options})
    if settings.ps:
        _cluster(ran, program, settings, before)
    elif settings.towers:
        _towers(ran, program, settings)
    else:
        joining = _joining(ran, settings, 0, launched=way == "launched")
        _prepare(ran, program, [joining])
        _worker(ran, program, joining)
    return ran


def _joining(ran: Ran, settings: Settings, index: int, **more: Any) -> Joining:
    return Joining(job="worker", index=index, settings=settings, report=ran.reports.append, run=RUN, **more)


def _prepare(ran: Ran, program: Program, joinings: Sequence[Joining]) -> None:
    """All in turn: what is made draws from one global generator."""
    for joining in joinings:
        ran.loops.append(Loop(joining))
        ran.made.append(program.make())
        ran.ends.append(None)


def _worker(ran: Ran, program: Program, joining: Joining) -> None:
    index, error = joining.index, None
    loop, made = ran.loops[index], ran.made[index]
    try:
        ran.ends[index] = program.loop(loop, *loop.prepare(*made))
    except Over as over:
        ran.ends[index] = over
    except BaseException as failure:
        ran.ends[index] = error = failure
    try:
        joining.finish(error)
    except BaseException as failure:
        ran.ends[index] = error or failure


def _in_threads(ran: Ran, tasks: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
        assert not thread.is_alive(), f"a task hangs; programs have ended with {ran.ends}"


def _towers(ran: Ran, program: Program, settings: Settings) -> None:
    meeting = Meeting(settings.towers)
    ran.meeting = meeting  # type: ignore[attr-defined]
    joinings, members = [], [Member(meeting, rank) for rank in range(settings.towers)]
    ran.members = members  # type: ignore[attr-defined]
    for rank, member in enumerate(members):
        tower = Tower(rank=rank, local_rank=rank, one_machine=True, meet=lambda _, member=member: member)
        joinings.append(_joining(ran, settings, rank, tower=tower))
        if rank:
            joinings[rank].report = lambda report: None  # as `tower_here` has it
    _prepare(ran, program, joinings)

    def work(joining: Joining) -> None:
        with meeting.baton:
            try:
                _worker(ran, program, joining)
            finally:
                if isinstance(ran.ends[joining.index], Exception):
                    meeting.leave()

    _in_threads(ran, [partial(work, joining) for joining in joinings])


def _cluster(ran: Ran, program: Program, settings: Settings, before: Ran | None) -> None:
    def built(settings: Settings, _: object) -> Any:
        parts = sorted_out(program.make())
        put_in_training(parts.optimizers)
        return build(parts, settings)

    length = len(program.loader())
    here, start = threading.Barrier(settings.workers), Remote.start

    def together(remote: Remote, want: int) -> Any:
        """No worker begins its loop before all have joined: the run of one that is quick could be over before."""
        turn = start(remote, want)
        here.wait(30.0)
        return turn

    chosen = {name: getattr(settings, name) for name in Settings.__dataclass_fields__ if name != "recipe"}
    with (
        patch.object(in_one_process, "build", built),
        patch.object(in_one_process, "Expected", partial(Expected, sources=source_of(settings.script))),
        patch("evener.loop.remote.Dialer", lambda settings, name, run: in_memory),
        patch("evener.loop.remote.VERSION", EVENER),
        patch.object(Remote, "start", together),
        Cluster(program, Path(settings.logdir), batches=length, before=before and before.cluster, **chosen) as cluster,
    ):
        ran.cluster = cluster
        addresses = Fixed(tuple(listener.address for listener in cluster.listeners))
        joinings = [_joining(ran, settings, index, rendezvous=addresses) for index in range(settings.workers)]
        _prepare(ran, program, joinings)
        servers = [partial(_serve, server) for server in cluster.servers]
        _in_threads(ran, [*servers, *(partial(_worker, ran, program, joining) for joining in joinings)])
        ran.reports += cluster.reports


def _serve(server: Any) -> None:
    with suppress(EvenerError):  # its workers and the leader say the same
        serve(server)


def audited(directory: Path) -> Any:
    """The account of a run's ledger, which must be clean."""
    found = account(directory)
    assert found.clean, str(found)
    return found


def replicas(way: str) -> int:
    """Batches that an update is a mean over."""
    return WAYS[way][1]


def good(ran: Ran) -> Ran:
    """A run in which nothing went wrong."""
    assert [end for end in ran.ends if isinstance(end, BaseException)] == []
    return ran


def plain(program: Program, directory: Path) -> list[torch.Tensor]:
    """What the program makes of its parameters without evener."""
    return run("plain", program, directory).values()
