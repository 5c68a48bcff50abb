"""One process that trains alone, put together as `evener train` does, in virtual time; and how models are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from evener.data.batches import Batches, Numbered
from evener.data.dataset import Data, as_data
from evener.data.loader import FromLoader, LoaderBatches
from evener.ledger import LOADER, SEVERAL, Begin, Ledger, path_of
from evener.recipes.recipe import Recipe
from evener.report import AnyReport
from evener.session.hooks import Hook
from evener.session.session import Session
from evener.settings import Settings, make
from evener.state.checkpoint import Store
from evener.state.manifest import in_unit
from evener.state.saver import Saver, SaveSchedule
from evener.state.state import State
from evener.state.tensors import Slot
from evener.task.build import batches_of, build, counted, settled
from evener.testing.clock import Clock, Disk
from evener.testing.workers import EVENER
from evener.worker.compute.towers import Towers
from evener.worker.exchange.local import Local


def data_of(recipe: Recipe, settings: Settings) -> tuple[Settings, Data, Numbered]:
    """A recipe's data and its leases, and the settings in the unit in which they are counted."""
    data = as_data(recipe.data()).sized(settings.batch_size, settings.eval_batch_size or settings.batch_size)
    settings = settled(settings, recipe)
    data_of_step = data if recipe.step is None else data.of_any_form()
    if isinstance(data.train, FromLoader):
        batches: Numbered = batches_of(data_of_step, settings)
    else:  # however few samples there are
        batches = Batches(data_of_step.train, batch_size=settings.batch_size, seed=settings.seed)
    return counted(settings, batches), data, batches


def ledger_of(settings: Settings, batches: Numbered, mode: str) -> Ledger:
    marks = (SEVERAL if settings.batches > 1 else "") + (LOADER if isinstance(batches, LoaderBatches) else "")
    return Ledger(path_of(Path(settings.logdir)), Begin(mode=mode + marks, batch_size=settings.batch_size))


def one_process(
    recipe: Recipe, directory: Path, hooks: Sequence[Hook] = (), *, clock: Clock | None = None, **options: Any
) -> tuple[Session, Clock, list[AnyReport]]:
    """A session that trains alone, put together as `evener train` does, with virtual time."""
    everything: dict[str, Any] = {"save_checkpoint_secs": None, "logdir": str(directory)} | options
    settings, clock = make(everything), clock or Clock()
    reports: list[AnyReport] = []
    built = build(settings, recipe)
    recipe = built.recipe
    settings, data, batches = data_of(recipe, settings)
    store = Store(Path(settings.logdir) / "checkpoints")
    restored = store.newest()
    schedule = SaveSchedule(
        every_seconds=settings.save_checkpoint_secs, every_steps=settings.save_checkpoint_steps, keep=settings.keep
    )
    with patch("evener.state.saver.ThreadPoolExecutor", Disk()):
        saver = Saver(store, schedule, shards=1, clock=clock)
    if restored:
        saver.resumed(restored[0].step, str(store.path(restored[0].step)))
        restored = (in_unit(restored[0], settings.batch_size, by_samples=False), restored[1])
    blocks = [torch.zeros(built.layout.nbytes, dtype=torch.uint8) for _ in range(2)]
    parts = [[block[at : at + nbytes] for at, nbytes in built.layout.ranges(0)] for block in blocks]
    state = State(built.model, recipe, built.layout, slot=Slot(built.layout, 0, parts[0]))
    towers = Towers(built.model, recipe, built.layout, parameters=blocks[0], gradients=blocks[1], seed=settings.seed)
    ledger = ledger_of(settings, batches, "single")
    exchange = Local(
        state, Slot(built.layout, 0, parts[1]), settings=settings, samples=len(data.train), saver=saver,
        ledger=ledger, restored=restored, report=reports.append, clock=clock, evener=EVENER,
    )  # fmt: skip
    exchange.ahead, exchange.named = batches.ahead, batches.named
    session = Session(
        "worker:0", exchange, towers, batches, hooks,
        recipe=recipe, settings=settings, report=reports.append, clock=clock,
    )  # fmt: skip
    return session, clock, reports


def differences(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> Iterator[float]:
    """Of each tensor: the 2-norm of the difference over the 2-norm of the right one."""
    assert left.keys() == right.keys()
    for name, value in right.items():
        norm = torch.linalg.vector_norm(value.double())
        yield (
            float(torch.linalg.vector_norm(left[name].double() - value.double()) / norm)
            if norm
            else float(torch.linalg.vector_norm(left[name].double()))
        )


def same_bits(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)
