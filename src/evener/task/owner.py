"""A process that holds all parameters, put together: one alone, or one of several towers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evener.devices.process import LARGE
from evener.ledger import LOADER, Ledger
from evener.report import Reporter
from evener.session.session import Session
from evener.settings import Settings
from evener.state.in_place import InPlace
from evener.state.saver import NoSaver, Saver
from evener.state.state import State
from evener.state.tensors import CPU, Slot, digest_of, named_tensors, zeros
from evener.task.build import VERSION, Built, beginning, open_ledger, open_store, tell_start
from evener.task.parts import Model, Prepared, prepared
from evener.task.placing import place_model
from evener.task.server import schedule_of
from evener.wire.layout import Layout
from evener.worker.allreduce.allreduce import DIFFERENCES, AllReduce, Travelling, agree
from evener.worker.allreduce.group import Group
from evener.worker.allreduce.restored import Restored, share_restored
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


#: What saves, what is written down, and where the run goes on, if anywhere.
Kept = tuple[Saver | NoSaver, Ledger, Restored]


def session_of(built: Built, settings: Settings, report: Reporter, tower: Tower | None = None) -> Session:
    """All parts of the process. Tower 0, or the one alone, has the logdir: checkpoints, ledger, summaries.

    Raises:
        EvenerError: what the recipe, the data, the devices, the other towers or the logdir are wrong about.
    """
    task, layout = f"worker:{tower.rank if tower else 0}", built.layout
    parts = prepared(built, settings, task, report)
    homes = place_model(built, parts.settings, rank=tower.local_rank if tower else 0, report=report, task=task)
    # On one GPU everything lives there, the optimizer too. With several devices the optimizer's one memory stays here.
    home = next(iter(homes.values())) if homes and len(set(homes.values())) == 1 else CPU
    group = tower.meet(home) if tower else None
    kept = _beginning(parts, home, tower, group)
    # tensors rather than bytearrays: their memory is aligned to cache lines
    parameters = zeros(layout.nbytes, home)
    travelling = Travelling.of(layout, home)
    state = State(built.model, built.recipe, layout, slot=Slot(layout, 0, _ranges(layout, parameters)))
    in_place, gradients = None, Slot(layout, 0, _ranges(layout, travelling.block))
    if tower is None and not homes and _in_any_order(parts):
        in_place = gradients = InPlace(layout, _ranges(layout, travelling.block))
    # Towers sum in that block, and may be asked afterwards whose gradient was not finite. To look before each sum takes
    # a twentieth of the step of a small model; a large one would have all its gradients twice instead.
    apart = tower is not None and layout.nbytes < LARGE
    model = Model.over(parts, parameters, travelling.block, homes if home == CPU else None, apart=apart,
                       in_place=in_place)  # fmt: skip
    local = _local(parts, kept, state, gradients, tower)
    exchange: Exchange = local
    if tower is not None and group is not None:
        suspect = model.towers.first_non_finite
        exchange = AllReduce(
            local, gradients, travelling, group, suspect=suspect, early=not apart, stop_asked=tower.stop_asked
        )
    return parts.session(model.reached_by(exchange), model.towers, homes)


def _ranges(layout: Layout, block: Tensor) -> list[Tensor]:
    return [block[at : at + nbytes] for at, nbytes in layout.ranges(0)]


def _in_any_order(parts: Prepared) -> bool:
    """Whether nothing of a run depends on the order in which squares of its gradients are summed."""
    recipe = parts.built.recipe
    return recipe.clip_norm is None and recipe.clip_value is None and parts.settings.refuse_norm is None


def _beginning(parts: Prepared, home: torch.device, tower: Tower | None, group: Group | None) -> Kept:
    """Where all towers begin, or the one alone. Whoever fails here leaves the others."""
    try:
        if group is not None and tower is not None:
            facts = _facts(parts, home, tower)
            for difference in agree(group, facts, DIFFERENCES if parts.settings.allow_difference else ()):
                if tower.rank == 0:
                    parts.tell(f"warning: {difference}")
        kept: Kept = (NoSaver(), Ledger(), None)
        if tower is None or tower.rank == 0:
            tell_start(parts.built, parts.settings, parts.task, parts.report)
            kept = _kept(parts)
        return kept if group is None else (*kept[:2], share_restored(group, kept[2]))
    except BaseException:
        if group is not None:
            group.close(failed=True)
        raise


def _kept(parts: Prepared) -> Kept:
    """Of the logdir, for the process that saves."""
    settings, report = parts.settings, parts.report
    store = open_store(settings, tell=parts.tell)
    saver = Saver(store, schedule_of(settings), shards=1, clock=time.monotonic, tell=parts.tell)
    restored = beginning(store, saver, settings, parts.task, report)
    marks = LOADER if parts.by_loader else ""
    return saver, open_ledger(settings, generation=0, run="", report=report, task=parts.task, marks=marks), restored


def _local(parts: Prepared, kept: Kept, state: State, gradients: Slot, tower: Tower | None) -> Local:
    saver, ledger, restored = kept
    local = Local(
        state, gradients, settings=parts.settings, samples=len(parts.data.train), saver=saver, ledger=ledger,
        restored=restored, report=parts.report, clock=time.monotonic, evener=VERSION,
        tower=tower.rank if tower else 0, towers=parts.settings.aggregate,
    )  # fmt: skip
    local.ahead, local.named = parts.batches.ahead, parts.batches.named
    return local


def _facts(parts: Prepared, home: torch.device, tower: Tower) -> dict[str, object]:
    """What towers must agree about, by the name that a person gave it."""
    built, settings, samples = parts.built, parts.settings, len(parts.data.train)
    options = json.dumps(dict(settings.recipe_options), sort_keys=True, default=str)
    return {
        "evener": VERSION, "torch": str(torch.__version__), "towers": settings.aggregate, "seed": settings.seed,
        "batch size": settings.batch_size, "batch sizes": list(settings.batch_sizes),
        "batches of a gradient": settings.batches, "train steps": settings.steps(samples), "samples": samples,
        "options of the recipe": options, "a model of layout": built.layout.fingerprint,
        "recipe": built.fingerprint, "values": digest_of(named_tensors(built.model)), "its gradients on": home.type,
        "all on one machine": tower.one_machine, "recipe files": built.sources, "first samples": parts.first,
    }  # fmt: skip
