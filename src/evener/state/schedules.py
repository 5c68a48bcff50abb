"""The schedule of a recipe: which clock drives it, and what a checkpoint keeps of it."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from evener.errors import ConfigError
from evener.recipes.recipe import Recipe
from evener.recipes.references import kind_of, place_of
from evener.state.values import check_kinds, plain, unpack


@dataclass(frozen=True, slots=True)
class Clocked:
    """A scheduler and what drives it: `each_epoch`, `each_validation`."""

    scheduler: Any
    clock: str  # "step", "epoch" or "validation"
    figure: str = ""  # of the validation


def each_epoch(scheduler: Any) -> Clocked:
    """Step this scheduler after each pass over the training data, not after each update.

    >>> from torch.optim.lr_scheduler import StepLR
    >>> recipe = dict(lr_scheduler=lambda optimizer, _: each_epoch(StepLR(optimizer, step_size=30)))
    """
    return Clocked(scheduler, "epoch")


def each_validation(scheduler: Any, figure: str = "validation_loss") -> Clocked:
    """Step this scheduler with a figure of each validation (`--eval-every`). `ReduceLROnPlateau` needs no mark."""
    return Clocked(scheduler, "validation", figure)


class Schedule:
    """The recipe's scheduler at work over one shard's optimizer.

    Args:
        pace: updates in one pass over the data, exactly.

    Raises:
        ConfigError: `lr_scheduler` made no scheduler of this optimizer, or failed.
    """

    def __init__(self, recipe: Recipe, optimizer: Optimizer, pace: Fraction) -> None:
        assert recipe.lr_scheduler is not None
        self._pace = pace
        made = _made(recipe.lr_scheduler, optimizer, pace)
        if not isinstance(made, Clocked):
            made = each_validation(made) if isinstance(made, ReduceLROnPlateau) else Clocked(made, "step")
        self.scheduler, self.clock, self.figure = made.scheduler, made.clock, made.figure
        self._epoch = 0
        if not callable(getattr(self.scheduler, "step", None)) or not hasattr(self.scheduler, "state_dict"):
            raise ConfigError(
                f"the recipe's lr_scheduler{place_of(recipe.lr_scheduler)} returned {kind_of(self.scheduler)}.",
                why="it makes one scheduler, which is stepped after each update.",
                fix="return a scheduler of torch.optim.lr_scheduler; several in ChainedScheduler or SequentialLR.",
            )
        if getattr(self.scheduler, "optimizer", optimizer) is not optimizer:
            raise ConfigError(
                f"the recipe's lr_scheduler{place_of(recipe.lr_scheduler)} returned one of another optimizer.",
                why="it is called with the optimizer that is at work, on the task that has it.",
                fix="write lr_scheduler=lambda optimizer, steps_per_epoch: ...(optimizer, ...).",
            )

    def check_driven(self, every: int | None) -> None:
        """Refuse a schedule that waits for validations, where `every` says that there are none before the end."""
        if self.clock == "validation" and every is None:
            raise ConfigError(
                f"the recipe's {type(self.scheduler).__name__} waits for validations, and there is none but the last.",
                why=f"it takes a step with the {self.figure} of each.",
                fix=f"validate while training: --eval-every N; an epoch is {math.ceil(self._pace)} global steps.",
            )

    def updated(self, step: int) -> None:
        """An update was made, the `step`-th of the whole run."""
        if self.clock == "step":
            self._advance(step)
        elif self.clock == "epoch":
            while self._epoch < math.floor(step / self._pace):
                self._epoch += 1
                self._advance(step)

    def judged(self, figures: Mapping[str, float], step: int) -> None:
        """A validation was made."""
        if self.clock != "validation":
            return
        if self.figure not in figures:
            raise ConfigError(
                f"the schedule waits for {self.figure!r}, which the validation does not give.",
                why="it is driven by a figure of each validation.",
                fix=f"name one of: {', '.join(figures)}; or give the recipe validation data.",
            )
        self._advance(step, figures[self.figure])

    def _advance(self, step: int, *figure: float) -> None:
        try:
            self.scheduler.step(*figure)
        except ValueError as error:
            raise ConfigError(
                f"the recipe's {type(self.scheduler).__name__} fails at global step {step}: {error}",
                why="a schedule that was made for so many steps has no learning rate for more.",
                fix="make it long enough for --train-steps; in a logdir that has a schedule already, its length is the "
                "checkpoint's unless you say --hyperparameters recipe.",
            ) from error

    def forward(self, step: int) -> None:
        """Go where it would be after so many updates, without making them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, that the optimizer should step first
            for done in range(1, step + 1):
                self.updated(done)

    def state(self) -> dict[str, Any]:
        """Packed values: see `evener.state.values`."""
        return plain(self.scheduler.state_dict())

    def load(self, packed: Mapping[str, Any], step: int) -> None:
        """Continue from `state` at this global step."""
        self._epoch = math.floor(step / self._pace)
        saved = {key: unpack(value) for key, value in packed.items()}
        check_kinds(saved, self.scheduler.state_dict())
        self.scheduler.load_state_dict(saved)


def _made(make: Callable[..., Any], optimizer: Optimizer, pace: Fraction) -> Any:
    try:
        return make(*((optimizer, math.ceil(pace), pace)[: _arguments(make)]))
    except (TypeError, ValueError) as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise ConfigError(
                f"the recipe's lr_scheduler{place_of(make)} cannot be called: {error}.",
                why="it is called with the optimizer, the updates in an epoch as a whole number, and if it takes a "
                "third argument, the same exactly, as a Fraction.",
                fix="write lr_scheduler=lambda optimizer, steps_per_epoch: ...",
            ) from error
        raise


def _arguments(make: Callable[..., Any]) -> int:
    """How many of (optimizer, whole, exact) a function takes; 2 where it does not say."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return 2
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 3
    required = sum(p.default is p.empty for p in needed)
    return 3 if required >= 3 or (len(needed) >= 3 and needed[2].name in ("exact", "exact_steps_per_epoch")) else 2
