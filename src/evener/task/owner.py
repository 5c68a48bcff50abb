"""A process that holds all parameters, put together: one alone, or one of several towers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from evener.data.loader import LoaderBatches
from evener.ledger import LOADER, Ledger
from evener.report import Reporter
from evener.session.session import Session
from evener.settings import Settings
from evener.state.saver import NoSaver, Saver
from evener.state.state import State
from evener.state.tensors import CPU, Slot, digest_of, named_tensors
from evener.task.build import (
    VERSION,
    Built,
    beginning,
    counted,
    loaded,
    open_ledger,
    open_store,
    settled,
    tell_and_log,
    tell_start,
)
from evener.task.placing import place_model
from evener.task.server import schedule_of
from evener.task.worker import hooks_for
from evener.worker.allreduce.allreduce import DIFFERENCES, AllReduce, Restored, Travelling, agree, share_restored
from evener.worker.allreduce.group import Group
from evener.worker.compute.device_memory import DeviceMemory, Fetching
from evener.worker.compute.feeding import feed_for
from evener.worker.compute.towers import Towers
from evener.worker.exchange.exchange import Exchange
from evener.worker.exchange.local import Local


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """One of several processes that hold all parameters.

    `meet` waits for the others, given the device that the gradients are on.
    """

    rank: int
    local_rank: int
    one_machine: bool  # all of them
    meet: Callable[[torch.device], Group]
    stop_asked: Callable[[], str] = lambda: ""


def session_of(built: Built, settings: Settings, report: Reporter, tower: Tower | None = None) -> Session:
    """All parts of the process. Tower 0, or the one alone, has the logdir: checkpoints, ledger, summaries.

    Raises:
        EvenerError: what the recipe, the data, the devices, the other towers or the logdir are wrong about.
    """
    rank = tower.rank if tower else 0
    task = f"worker:{rank}"
    if built.note and rank == 0:
        tell_and_log(task, report, built.note)
    settings = settled(settings, built.recipe)
    data, batches, first = loaded(built, settings, task, report)
    settings, marks = counted(settings, batches), LOADER if isinstance(batches, LoaderBatches) else ""
    homes = place_model(built, settings, rank=tower.local_rank if tower else 0, report=report, task=task)
    # On one GPU everything lives there, the optimizer too. With several devices the optimizer's one memory stays here.
    home = next(iter(homes.values())) if homes and len(set(homes.values())) == 1 else CPU
    group = tower.meet(home) if tower else None
    try:
        if group is not None and tower is not None:
            allowed = DIFFERENCES if settings.allow_difference else ()
            for difference in agree(
                group, _facts(built, settings, len(data.train), home, tower) | {"first samples": first}, allowed
            ):
                if rank == 0:
                    tell_and_log(task, report, f"warning: {difference}")
        if rank == 0:
            tell_start(built, settings, task, report)
        saver, ledger, restored = _kept(settings, report, marks) if rank == 0 else (NoSaver(), Ledger(), None)
        if group is not None:
            restored = share_restored(group, restored)
    except BaseException:
        if group is not None:
            group.close(failed=True)
        raise
    # uint8 tensors rather than bytearrays: their memory is aligned to cache lines
    parameters = torch.zeros(built.layout.nbytes, dtype=torch.uint8, device=home)
    travelling = Travelling.of(built.layout, home)
    memory = None
    if homes and home == CPU:
        memory = DeviceMemory(built.layout, homes, parameters=parameters, gradients=travelling.block)
    parts = [
        [block[at : at + nbytes] for at, nbytes in built.layout.ranges(0)] for block in (parameters, travelling.block)
    ]
    state = State(built.model, built.recipe, built.layout, slot=Slot(built.layout, 0, parts[0]))
    gradients = Slot(built.layout, 0, parts[1])
    towers = Towers(
        built.model, built.recipe, built.layout, parameters=parameters, gradients=travelling.block,
        seed=settings.seed, memory=memory,
    )  # fmt: skip
    local = Local(
        state, gradients, settings=settings, samples=len(data.train), saver=saver, ledger=ledger, restored=restored,
        report=report, clock=time.monotonic, evener=VERSION, tower=rank, towers=settings.aggregate,
    )  # fmt: skip
    local.ahead, local.named = batches.ahead, batches.named
    exchange: Exchange = local
    if tower is not None and group is not None:
        exchange = AllReduce(
            local, gradients, travelling, group, suspect=towers.first_non_finite, stop_asked=tower.stop_asked
        )
    if memory is not None:
        exchange = Fetching(exchange, memory)
    return Session(
        task, exchange, towers, batches, hooks_for(built.recipe, data, settings, partial(tell_and_log, task, report)),
        recipe=built.recipe, settings=settings, report=report, clock=time.monotonic, feed=feed_for(homes),
    )  # fmt: skip


def _kept(settings: Settings, report: Reporter, marks: str) -> tuple[Saver, Ledger, Restored]:
    """Of the logdir, for the process that saves."""
    tell = partial(tell_and_log, "worker:0", report)
    store = open_store(settings, tell=tell)
    saver = Saver(store, schedule_of(settings), shards=1, clock=time.monotonic, tell=tell)
    restored = beginning(store, saver, settings, "worker:0", report)
    return saver, open_ledger(settings, generation=0, run="", report=report, task="worker:0", marks=marks), restored


def _facts(built: Built, settings: Settings, samples: int, home: torch.device, tower: Tower) -> dict[str, object]:
    """What towers must agree about, by the name that a person gave it."""
    options = json.dumps(dict(settings.recipe_options), sort_keys=True, default=str)
    return {
        "evener": VERSION, "torch": str(torch.__version__), "towers": settings.aggregate, "seed": settings.seed,
        "batch size": settings.batch_size, "batch sizes": list(settings.batch_sizes),
        "batches of a gradient": settings.batches, "train steps": settings.steps(samples), "samples": samples,
        "options of the recipe": options, "a model of layout": built.layout.fingerprint,
        "recipe": built.fingerprint, "values": digest_of(named_tensors(built.model)), "its gradients on": home.type,
        "all on one machine": tower.one_machine, "recipe files": built.sources,
    }  # fmt: skip
