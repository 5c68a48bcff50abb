"""The parts of a recipe are looked at when it is made: functions where functions are wanted, numbers that can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from evener.errors import ConfigError
from evener.figures import EarlyStopping
from evener.recipes.references import kind_of

if TYPE_CHECKING:
    from evener.recipes.recipe import Recipe

#: Batches of one gradient.
MOST_BATCHES = 1024
#: The parts of a recipe that are functions, and their arguments.
_PARTS = {
    "model": "",
    "data": "",
    "optimizer": "model",
    "loss": "output, target",
    "step": "model, batch",
    "penalty": "model",
    "lr_scheduler": "optimizer, steps_per_epoch",
    "hooks": "",
    "evaluate": "model, batches",
}
_OPTIONAL = ("step", "penalty", "lr_scheduler", "hooks", "evaluate")


def check_functions(recipe: Recipe) -> None:
    """Refuse parts that are no functions, and objects where their makers are wanted. Raises ConfigError."""
    for part, arguments in _PARTS.items():
        value = getattr(recipe, part)
        optional = part in _OPTIONAL
        if (optional and value is None) or (callable(value) and not _object_for_maker(part, value)):
            continue
        raise ConfigError(
            f"{part} is {kind_of(value)}, not a function ({arguments}).",
            why="every task of a run makes its own parts, so a recipe holds functions.",
            fix=f"write {part}=lambda{' ' * bool(arguments)}{arguments}: ..."
            + (" or leave it out." if optional else "."),
        )
    if isinstance(recipe.loss, nn.Module) and any(p.requires_grad for p in recipe.loss.parameters()):
        raise ConfigError(
            f"loss is {kind_of(recipe.loss)} with parameters to train.",
            why="what is trained, travels and is saved are the parameters of the model.",
            fix="put it into the model, and let the recipe's loss take what it needs from the model's output.",
        )
    if not isinstance(recipe.metrics, Mapping) or not all(callable(metric) for metric in recipe.metrics.values()):
        raise ConfigError(
            f"metrics is {recipe.metrics!r}.",
            why="it maps names to functions (output, target) -> mean over the batch.",
            fix='write metrics={"accuracy": evener.accuracy}, or {} for none.',
        )


def check_values(recipe: Recipe) -> None:
    """Refuse parts of another type or size than they can have. Raises ConfigError."""
    for name, what, example in _NAMES:
        given = getattr(recipe, name)
        if isinstance(given, str) or not all(isinstance(entry, str) for entry in given):
            raise ConfigError(f"{name} is {given!r}.", why=f"it is a list of names of {what}.", fix=f"write {example}.")
    if recipe.keep_best is not None and not isinstance(recipe.keep_best, str):
        raise ConfigError(
            f"keep_best is {kind_of(recipe.keep_best)}.",
            why="it is the name of a figure of the validations.",
            fix='write keep_best="validation_accuracy".',
        )
    if recipe.early_stopping is not None and not isinstance(recipe.early_stopping, EarlyStopping):
        raise ConfigError(
            f"early_stopping is {kind_of(recipe.early_stopping)}.",
            why="it names a figure of the validations, and how many of them may pass without an improvement.",
            fix='write early_stopping=evener.EarlyStopping("validation_loss", patience=3).',
        )
    count = recipe.batches_per_step
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_BATCHES:
        raise ConfigError(
            f"batches_per_step={count!r} cannot work.",
            why="it is the number of batches of which one gradient is the mean.",
            fix=f"use a whole number from 1 to {MOST_BATCHES}.",
        )
    decay = recipe.ema_decay
    if decay is not None and (isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay < 1):
        raise ConfigError(
            f"ema_decay={decay!r} is not between 0 and 1.",
            why="it is the share of the old average that stays at each step.",
            fix="use 0.99 to 0.9999, or None for no average.",
        )


#: The parts that are lists of names: of what, and an example.
_NAMES = (
    ("split_points", "modules, at each of which a stage of a pipeline may begin", 'split_points=["layer3", "layer5"]'),
    ("changing", "frozen parameters, or of modules that hold them", 'changing=["teacher"]'),
)


def check_step(recipe: Recipe, usual: Mapping[str, object]) -> None:
    """Refuse a `step` beside what it stands for. Raises ConfigError.

    Args:
        usual: the metrics of a recipe that names none.
    """
    if recipe.step is None:
        return
    if recipe.loss is not F.cross_entropy:
        raise ConfigError(
            "the recipe has both a loss and a step.",
            why="step calls the model and computes the loss itself.",
            fix="leave one of them out.",
        )
    if recipe.metrics and dict(recipe.metrics) != usual:
        raise ConfigError(
            "the recipe has both metrics and a step.",
            why="metrics compare an output with a target, which only step knows.",
            fix='let step return them beside the loss: {"loss": ..., "accuracy": ...}; or write evaluate.',
        )


def _object_for_maker(part: str, value: object) -> bool:
    """The usual slips, all callable: a module where its maker is wanted, a class where a function is."""
    if isinstance(value, type):
        return part != "model" and issubclass(value, nn.Module | Optimizer)
    return part == "model" and isinstance(value, nn.Module)
