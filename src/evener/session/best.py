"""What follows from validations: the best model is kept, and a run that no longer improves ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec
from torch import nn

from evener import files
from evener.errors import ConfigError, EvenerError
from evener.figures import EarlyStopping, Figure
from evener.recipes.recipe import Recipe
from evener.session.hooks import Hook, StepResult
from evener.session.session import Session
from evener.settings import Settings
from evener.state.atomic import atomic_write
from evener.state.checkpoint import Manifest, Store
from evener.state.contents import Contents
from evener.state.tensors import named_tensors
from evener.state.values import plain

#: The directory in a logdir, and the file in it that says how good it is.
BEST, NOTE = "best", "best.json"


class Note(msgspec.Struct, frozen=True):
    """How good the best model is."""

    figure: str
    value: float
    step: int


class Best:
    """Keeps the model with the best figure in LOGDIR/best: a checkpoint without an optimizer.

    `evener eval`, `evener export` and `--init-from` take it as they take any other; a run does not continue from it.

    Args:
        figure: by which models are compared; ``..._ema`` keeps the moving averages.
        tell: gets a line when one is kept, and when it cannot be.
    """

    def __init__(self, figure: Figure, settings: Settings, evener: str, tell: Callable[[str], None]) -> None:
        self._figure, self._settings, self._evener, self._tell = figure, settings, evener, tell
        self._directory = Path(settings.logdir) / BEST
        self._value: float | None = None  # of the one that is kept; None: not looked for yet
        self._told = False  # that none can be kept, until one is

    def look(self, model: nn.Module, step: int, values: Mapping[str, float]) -> None:
        """The model holds what was just measured, parameters or averages: keep it if it is better than all before."""
        name = self._figure.name
        if name not in values:  # it is of the others
            return
        if self._value is None:
            self._value = self._known()
        if self._figure.better(values[name], self._value):
            try:
                self._keep(model, step, values[name])
            except (OSError, EvenerError) as error:
                self._refused(error)
            else:  # else a later one that is better than the one that is kept takes its place
                self._value, self._told = values[name], False

    def _refused(self, error: OSError | EvenerError) -> None:
        if not self._told:
            self._told = True
            self._tell(f"the best model so far cannot be kept: {error}; training goes on")

    def _known(self) -> float:
        try:
            note = msgspec.json.decode(files.content(self._directory / NOTE, files.SMALL), type=Note)
        except (OSError, *files.NOT_JSON):
            return math.nan
        return note.value if note.figure == self._figure.name else math.nan

    def _keep(self, model: nn.Module, step: int, value: float) -> None:
        tensors = named_tensors(model)  # written before anybody goes on, so nothing is copied
        store = Store(self._directory, tell=_ignore)  # the run's own has told what its file system lacks
        try:
            files = store.write_shard(Contents(step, tensors, {}, {}), 0)
            settings = self._settings
            store.commit(Manifest(
                step=step, shards=1, recipe=settings.recipe, options=plain(settings.recipe_options), files=files,
                shapes={name: list(tensor.shape) for name, tensor in tensors.items()}, parts={}, values={},
                next_lease=0, unapplied=[], seqs={}, batch_size=settings.batch_size, seed=settings.seed,
                evener=self._evener,
            ))  # fmt: skip
            atomic_write(self._directory / NOTE, [msgspec.json.encode(Note(self._figure.name, value, step))])
            for older in store.steps():
                if older != step:
                    store.forget(older)
        finally:
            store.close()
        self._tell(f"the best model so far is kept: {self._figure.name} {value:.6g} at global step {step}")


def check_figures(recipe: Recipe, names: Collection[str]) -> None:
    """Refuse a recipe that compares validations by a figure that is none of `names`. Raises ConfigError."""
    stopping = recipe.early_stopping.figure if recipe.early_stopping is not None else None
    for part, text in (("keep_best", recipe.keep_best), ("early_stopping", stopping)):
        if text is not None and (name := Figure.of(text).name) not in names:
            raise ConfigError(
                f"there is no {name!r} among the figures of the validation.",
                why=f"the recipe's {part} compares validations by it.",
                fix=f"name one of: {', '.join(names)}."
                if names
                else "let data() return (train, validation): without a validation set there are no figures.",
            )


def _ignore(text: str) -> None:
    del text


class StopEarly(Hook):
    """End the run when a figure of the validations has not improved for so many of them."""

    def __init__(self, rule: EarlyStopping) -> None:
        self._rule, self._figure = rule, Figure.of(rule.figure)
        self._best, self._since, self._seen = math.nan, 0, 0

    def after_step(self, session: Session, result: StepResult) -> None:
        for evaluated in session.evaluations[self._seen :]:
            self._seen += 1
            value = evaluated.values[self._figure.name]
            if self._figure.better(value, self._best, self._rule.min_delta):
                self._best, self._since = value, 0
            else:
                self._since += 1
        if self._since >= self._rule.patience and not session.turn.stop:
            what = f"{self._figure.name} has not improved on {self._best:.6g} in {self._since} validations"
            session.stop(f"early stopping: {what}")
