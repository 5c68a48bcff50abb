"""Validation on the whole set, with the parameters and with their moving averages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evener.data.batches import whole
from evener.data.dataset import Batch, Dataset
from evener.devices.modules import joined, to_match
from evener.errors import ConfigError
from evener.recipe import Recipe
from evener.report import Evaluated, Status
from evener.session.hooks import Hook, StepResult
from evener.session.session import Session

#: Samples evaluated at once.
BATCH = 1000


def evaluate(model: nn.Module, recipe: Recipe, dataset: Dataset, *, suffix: str = "") -> dict[str, float]:
    """Mean loss (without the penalty) and metrics over all samples: ``validation_loss``, ``validation_accuracy``, ...

    Means of batches are weighted by their samples, so a short last batch counts as much as it holds.
    """
    sums: dict[str, float] = {}
    seen = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), joined(model):
            for inputs, target in whole(dataset, BATCH):
                output = model(inputs)
                count = len(target)
                beside = to_match(target, output)
                measured = {"loss": recipe.loss(output, beside)}
                measured |= {name: metric(output, beside) for name, metric in recipe.metrics.items()}
                for name, value in measured.items():
                    sums[name] = sums.get(name, 0.0) + _mean(name, value) * count
                seen += count
    finally:
        model.train(was_training)
    return {f"validation_{name}{suffix}": total / seen for name, total in sums.items()}


def _mean(name: str, value: object) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ConfigError(
            f"the recipe's {'loss' if name == 'loss' else f'metric {name!r}'} has shape {list(value.shape)}, "
            "not a scalar.",
            why="the mean over the batch is one number.",
            fix='return the mean over the batch, e.g. reduction="mean".',
        )
    return float(value)  # type: ignore[arg-type]  # whatever a user's function returns


class First:
    """The first `count` samples of a dataset."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self._dataset, self._count = dataset, min(count, len(dataset))

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: Tensor) -> Batch:
        return self._dataset.batch(indices)


class Evaluate(Hook):
    """The chief validates every `every` global steps, if given, and at the end of the run."""

    def __init__(self, dataset: Dataset | None, every: int | None) -> None:
        self._dataset = dataset
        self._every = every
        self._done = 0

    def after_create(self, session: Session) -> None:
        if self._dataset is not None and session.turn.chief:
            # A metric that does not fit the data should say so now, not after hours of training.
            evaluate(session.towers.model, session.recipe, First(self._dataset, 2))
        self._done = session.turn.version // self._every if self._every else 0

    def after_step(self, session: Session, result: StepResult) -> None:
        if self._every is None or not result.chief or session.turn.stop:
            return
        due = result.global_step // self._every
        if due > self._done:
            self._done = due
            self._evaluate(session, final=False)

    def end(self, session: Session) -> None:
        if session.turn.chief:
            self._evaluate(session, final=True)

    def _evaluate(self, session: Session, *, final: bool) -> None:
        if self._dataset is None:
            return
        session.report(Status(session.task, "evaluating", session.local_step))
        model, recipe = session.towers.model, session.recipe
        step = session.exchange.show("parameters")
        values = evaluate(model, recipe, self._dataset)
        if recipe.ema_decay is not None:
            session.exchange.show("averages")
            values |= evaluate(model, recipe, self._dataset, suffix="_ema")
            session.exchange.show("parameters")
        evaluated = Evaluated(step, values, final)
        session.evaluations.append(evaluated)
        session.report(evaluated)
