"""Validation on the whole of every validation set, with the parameters and with their moving averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evener.data.batches import AllSamples, all_of
from evener.data.chance import seed_all
from evener.data.dataset import Dataset
from evener.devices.modules import joined, moved_to, to_match
from evener.errors import ConfigError
from evener.recipes.recipe import Recipe
from evener.report import Evaluated, Status
from evener.session.best import Best, check_figures
from evener.session.hooks import Hook, StepResult
from evener.session.session import Session


def evaluate(  # noqa: PLR0913 - a model, and what of which data is asked
    model: nn.Module,
    recipe: Recipe,
    sets: Mapping[str, Dataset],
    *,
    batch_size: int,
    suffix: str = "",
    few: bool = False,
) -> dict[str, float]:
    """Mean loss (without the penalty) and metrics over all samples: ``validation_loss``, ``validation_accuracy``, ...

    Means of batches are weighted by their samples, so a short last batch counts as much as it holds. Nothing of the
    model is changed: neither modes nor buffers.

    Args:
        sets: name -> samples; ``validation_NAME_loss`` for those that have one, none for the only one.
        batch_size: samples at once.
        few: only the first ones, to try it out.
    """
    found: dict[str, float] = {}
    seed_all(0)  # what is random in the samples is the same each time; training seeds itself for each batch
    with untouched(model), torch.no_grad(), joined(model):
        for name, dataset in sets.items():
            samples = all_of(dataset, batch_size, few=few)
            values = _means(model, recipe, samples) if recipe.evaluate is None else _own(model, recipe, samples)
            prefix = f"validation_{name}_" if name else "validation_"
            found |= {f"{prefix}{key}{suffix}": value for key, value in values.items()}
    return found


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """In this block the model is in `eval()`; afterwards modes and buffers are what they were."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [(module, leaf, b, None if b is None else b.clone()) for module in modules
               for leaf, b in module._buffers.items()]  # fmt: skip
    model.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with torch.no_grad():
            for module, leaf, buffer, before in buffers:
                module._buffers[leaf] = buffer
                if buffer is not None and before is not None and buffer.shape == before.shape:
                    buffer.copy_(before)


def _means(model: nn.Module, recipe: Recipe, samples: AllSamples) -> dict[str, float]:
    sums: dict[str, float] = {}
    for count, batch in samples.counted():
        for name, value in _measured(model, recipe, batch).items():
            sums[name] = sums.get(name, 0.0) + _mean(name, value) * count
    return {name: total / len(samples) for name, total in sums.items()}


def _measured(model: nn.Module, recipe: Recipe, batch: Any) -> Mapping[str, Any]:
    """Loss and metrics of one batch."""
    if recipe.step is not None:
        found = recipe.step(model, moved_to(model, batch))
        return found if isinstance(found, Mapping) else {"loss": found}
    inputs, target = batch
    output = model(inputs)
    beside = to_match(target, output)
    metrics = {name: metric(output, beside) for name, metric in recipe.metrics.items()}
    return {"loss": recipe.loss(output, beside), **metrics}


def _own(model: nn.Module, recipe: Recipe, samples: AllSamples) -> dict[str, float]:
    assert recipe.evaluate is not None
    values = recipe.evaluate(model, samples)
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ConfigError(
            f"the recipe's evaluate returned {values!r}.",
            why="it gives figures by name.",
            fix='return a dictionary of numbers, such as {"loss": 0.3, "f1": 0.9}.',
        )
    return {name: _mean(name, value) for name, value in values.items()}


def _mean(name: str, value: Any) -> float:
    said = f"the recipe's {'loss' if name == 'loss' else f'metric {name!r}'}"
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ConfigError(
            f"{said} has shape {list(value.shape)}, not a scalar.",
            why="the mean over the batch is one number.",
            fix='return the mean over the batch, e.g. reduction="mean".',
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{said} is {value!r}.", why="figures are compared and drawn.", fix="return a number."
        ) from None


class Evaluate(Hook):
    """The chief validates every `every` global steps, if given, and at the end of the run.

    Args:
        sets: the validation sets, by name; empty: there is nothing to validate on.
        batch_size: samples at once.
        best: keeps the best model, if the recipe wants it.
    """

    def __init__(
        self, sets: Mapping[str, Dataset], every: int | None, batch_size: int, best: Best | None = None
    ) -> None:
        self._sets, self._every, self._batch_size, self._best = sets, every, batch_size, best
        self._done = 0
        self._at = -1  # the global step of the last validation

    def after_create(self, session: Session) -> None:
        self._done = session.turn.version // self._every if self._every else 0

    def after_step(self, session: Session, result: StepResult) -> None:
        if result.local_step == 1 and result.chief and not session.turn.stop:
            self._try_out(session)
        if self._every is None or not result.chief or session.turn.stop:
            return
        due = result.global_step // self._every
        if due > self._done:
            self._done = due
            self._evaluate(session, final=False)

    def _try_out(self, session: Session) -> None:
        """A metric that does not fit the data should say so now, not after hours of training.

        Not before a batch was trained on: layers that are shaped by their first batch are shaped by one of training.
        """
        if session.recipe.evaluate is None and self._sets:
            session.exchange.show("parameters")  # of a pipeline the other stages' are not here
            names = list(
                evaluate(session.towers.model, session.recipe, self._sets, batch_size=self._batch_size, few=True)
            )
            averaged = [f"{name}_ema" for name in names] if session.recipe.ema_decay is not None else []
            check_figures(session.recipe, [*names, *averaged])

    def end(self, session: Session) -> None:
        if session.turn.chief:
            self._evaluate(session, final=True)

    def _evaluate(self, session: Session, *, final: bool) -> None:
        if not self._sets:
            return
        session.report(Status(session.task, "evaluating", session.local_step))
        recipe = session.recipe
        step = session.exchange.show("parameters")
        values = self._measured(session, step, "")
        if recipe.ema_decay is not None:
            session.exchange.show("averages")
            values |= self._measured(session, step, "_ema")
            session.exchange.show("parameters")
        check_figures(recipe, values)  # of a validation of the recipe's own they are known now
        evaluated = Evaluated(step, values, final)
        session.evaluations.append(evaluated)
        session.report(evaluated)
        if not final:
            session.exchange.judge(values)

    def _measured(self, session: Session, step: int, suffix: str) -> dict[str, float]:
        model = session.towers.model
        values = evaluate(model, session.recipe, self._sets, batch_size=self._batch_size, suffix=suffix)
        if self._best is not None:
            self._best.look(model, step, values)
        return values
