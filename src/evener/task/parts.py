"""What every task that trains a recipe is put together of, wherever its gradients go."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evener.data.batches import Numbered
from evener.data.dataset import Data
from evener.data.loader import FromLoader, LoaderBatches
from evener.figures import Figure
from evener.report import Reporter
from evener.session.best import Best, StopEarly, check_figures
from evener.session.evaluate import Evaluate
from evener.session.hooks import Hook, LogEvery, StopOnNaN, hooks_of
from evener.session.session import Session
from evener.settings import Settings
from evener.state.in_place import InPlace
from evener.state.tensors import Bytes
from evener.task.build import VERSION, Built, counted, loaded, settled, tell_and_log
from evener.worker.compute.device_memory import DeviceMemory, Fetching
from evener.worker.compute.feeding import feed_for
from evener.worker.compute.towers import Towers
from evener.worker.exchange.exchange import Computes, Exchange


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe that is built, its data, and who hears of them. Made by `prepared`."""

    task: str
    built: Built
    settings: Settings  # in the unit in which the data are counted
    data: Data
    batches: Numbered
    first: str  # the first samples, in a few words
    report: Reporter

    def tell(self, text: str) -> None:
        """For the person who watches, and for the log."""
        tell_and_log(self.task, self.report, text)

    @property
    def by_loader(self) -> bool:
        """Whether the batches are those of a DataLoader."""
        return isinstance(self.batches, LoaderBatches)

    def session(
        self, exchange: Exchange, computes: Computes, homes: Mapping[str, torch.device] | None = None
    ) -> Session:
        """The training loop. `homes`: where the model's tensors are, if they are not in the memory that travels."""
        hooks = hooks_for(self)
        return Session(
            self.task, exchange, computes, self.batches, hooks, recipe=self.built.recipe, settings=self.settings,
            report=self.report, clock=time.monotonic, feed=feed_for(homes),
        )  # fmt: skip


def prepared(built: Built, settings: Settings, task: str, report: Reporter) -> Prepared:
    """Read the data and say what people should know before they train on them.

    Raises:
        EvenerError: what the recipe or its data are wrong about.
    """
    if built.note and task == "worker:0":
        tell_and_log(task, report, built.note)
    settings = settled(settings, built.recipe)
    data, batches, first = loaded(built, settings, task, report)
    return Prepared(task, built, counted(settings, batches), data, batches, first, report)


@dataclass(frozen=True, slots=True)
class Model:
    """The model over the memory that travels, or beside it on other devices, from where it is fetched and brought."""

    towers: Towers
    memory: DeviceMemory | None

    @classmethod
    def over(  # noqa: PLR0913 - a model and its memory
        cls,
        parts: Prepared,
        parameters: Bytes,
        gradients: Bytes,
        elsewhere: Mapping[str, torch.device] | None,
        *,
        apart: bool = False,
        in_place: InPlace | None = None,
    ) -> Model:
        """`elsewhere`: where the model's tensors are, if not in this memory. `apart`, `in_place`: see `Towers`."""
        built, memory = parts.built, None
        if elsewhere:
            memory = DeviceMemory(built.layout, elsewhere, parameters=parameters, gradients=gradients)
        towers = Towers(
            built.model, built.recipe, built.layout, parameters=parameters, gradients=gradients,
            seed=parts.settings.seed, memory=memory, apart=apart, in_place=in_place,
        )  # fmt: skip
        return cls(towers, memory)

    def reached_by(self, exchange: Exchange) -> Exchange:
        """What the exchange brings comes to the model."""
        return exchange if self.memory is None else Fetching(exchange, self.memory)


def hooks_for(parts: Prepared) -> list[Hook]:
    """The hooks of every run, then the recipe's own, which see the others' work (SEMANTICS H5)."""
    from evener.session.summary import Summaries

    recipe, data, settings = parts.built.recipe, parts.data, parts.settings
    if not data.validations:
        check_figures(recipe, ())
    clock = time.monotonic
    size = data.train.size if isinstance(data.train, FromLoader) else settings.batch_size
    sized = replace(settings, batch_size=size)
    best = Best(Figure.of(recipe.keep_best), settings, VERSION, parts.tell) if recipe.keep_best else None
    every = recipe.validates_every(settings, len(data.train))
    return [
        *([StopOnNaN()] if settings.on_nan == "stop" else []),
        LogEvery(settings.log_every, clock, float(sized.per_step)),
        Evaluate(data.validations, every, settings.eval_batch_size or settings.batch_size, best),
        *([StopEarly(recipe.early_stopping)] if recipe.early_stopping is not None else []),
        Summaries(Path(settings.logdir), settings.save_summary_secs, clock, sized),
        *hooks_of(recipe),
    ]
