"""One of several towers: where it meets the others, as a task of the launcher or as a process of torchrun's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from evener.cluster.environment import Rank
from evener.control.told import TOLD
from evener.errors import Preempted
from evener.report import AnyReport, Finished, Progress, Published, Reporter, Status
from evener.settings import Settings
from evener.task.build import Built, tell_and_log
from evener.task.owner import Tower, session_of
from evener.worker.allreduce.group import Group
from evener.worker.allreduce.meeting import Store, listening_store, store_at
from evener.worker.allreduce.process_group import ProcessGroup

#: Seconds that towers wait for each other to start.
START = 300.0
#: What the launcher says when it is a person who wants the run to end.
INTERRUPTED = "interrupted"


def run_tower(  # noqa: PLR0913 - what a task is told, each once
    index: int,
    built: Built,
    settings: Settings,
    *,
    addresses: Callable[[], Sequence[str]],
    stop_asked: Callable[[], str],
    report: Reporter,
) -> None:
    """Train as tower `index` of this machine."""
    tower = tower_here(index, settings, addresses=addresses, stop_asked=stop_asked, report=report)
    ended = session_of(built, settings, report if index == 0 else partial(_pass_on, report), tower).run()
    if TOLD in ended:
        raise Preempted(ended)  # one of us was told to leave: all have stopped at this step, and it is saved
    report(Status(f"worker:{index}", "done"))


def tower_here(
    index: int,
    settings: Settings,
    *,
    addresses: Callable[[], Sequence[str]],
    stop_asked: Callable[[], str],
    report: Reporter,
) -> Tower:
    """Tower `index` of this machine. Tower 0 publishes where they meet; `addresses` waits for that."""

    def meet(device: torch.device) -> Group:
        if index == 0:
            store, address = listening_store("127.0.0.1", START)
            report(Published("worker:0", address))
        report(Status(f"worker:{index}", "starting", waiting_for="the other towers"))
        if index:
            store = store_at(addresses()[0], START)
        return _group(
            store,
            Rank(index, settings.towers, index, settings.towers),
            settings=settings,
            device=device,
            report=report,
            lost=lost,
        )

    def lost() -> str:
        """The launcher sees the end of a process at once."""
        asked = stop_asked()
        return "" if asked == INTERRUPTED or TOLD in asked else asked

    return Tower(rank=index, local_rank=index, one_machine=True, meet=meet, stop_asked=stop_asked)


def tower_of(rank: Rank, settings: Settings, report: Reporter) -> Tower:
    """The tower that is this process of torchrun's, whose own store the others are met in."""

    def meet(device: torch.device) -> Group:
        if not rank.one_machine and rank.rank == 0:
            tell_and_log("worker:0", report, (
                "warning: gradients travel between machines without encryption or authentication: "
                "use a network that you trust"
            ))  # fmt: skip
        wait = timedelta(seconds=START)
        store, _, _ = next(dist.rendezvous("env://", timeout=wait))  # type: ignore[attr-defined]
        return _group(store, rank, settings=settings, device=device, report=report, lost=lambda: "")

    return Tower(rank=rank.rank, local_rank=rank.local_rank, one_machine=rank.one_machine, meet=meet)


def _group(  # noqa: PLR0913 - a place among others
    store: Store,
    rank: Rank,
    *,
    settings: Settings,
    device: torch.device,
    report: Reporter,
    lost: Callable[[], str],
) -> Group:
    shared = 0 < settings.num_gpus < rank.local_size  # NCCL wants a GPU for each process
    return ProcessGroup(
        store, rank=rank.rank, size=rank.size, device=device, shared=shared, one_machine=rank.one_machine,
        start=START,
        patience=settings.stall_timeout, report=report, clock=time.monotonic, lost=lost,
    )  # fmt: skip


def _pass_on(report: Reporter, what: AnyReport) -> None:
    """Tower 0 tells of the run; the others know the same."""
    if not isinstance(what, Progress | Finished):
        report(what)
