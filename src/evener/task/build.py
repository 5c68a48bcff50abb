"""From a recipe and settings to the parts that every way of running needs: the same on every task."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from torch import nn

from evener import errors
from evener.data.batches import Batches, Numbered
from evener.data.chance import seed_all
from evener.data.dataset import Data, as_data
from evener.data.loader import FromLoader, LoaderBatches
from evener.data.look import look_at
from evener.ledger import SEVERAL, Begin, Ledger, lost, path_of
from evener.models import check_inputs, check_model
from evener.recipes.recipe import Recipe, resolve
from evener.recipes.references import place_of, sources_of
from evener.report import Line, Reporter
from evener.rules import described
from evener.session.session import LONG_DATA
from evener.session.watch import Watch
from evener.settings import BATCH_SIZE, Settings
from evener.state.checkpoint import Manifest, Store
from evener.state.contents import Contents
from evener.state.manifest import in_unit
from evener.state.saver import Saver
from evener.state.tensors import digest_of, frozen, named_tensors, specs_of
from evener.task.ruling import ruled
from evener.task.warm_start import warm_start
from evener.wire.agreed import fingerprint_of
from evener.wire.layout import Layout

VERSION = version("evener")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """A recipe made concrete."""

    recipe: Recipe
    model: nn.Module
    layout: Layout
    fingerprint: str  # of everything that must agree besides the layout
    sources: str  # the files of the recipe, with digests
    note: str = ""  # what people should know of how it was built
    warm: tuple[str, ...] = ()  # what --init-from has changed, in sentences


def build(settings: Settings, recipe: Recipe | None = None) -> Built:
    """Make the model from the run's seed, so that every task makes the same one without talking."""
    found = recipe is None
    recipe = recipe or resolve(settings.recipe, settings.recipe_options, typed=settings.typed_recipes)
    recipe, idle = ruled(_clipping(recipe, settings), settings)
    seed_all(settings.seed)
    model = recipe.model()
    with _made_by("model", recipe.model):
        check_model(model, place_of(recipe.model))
        if recipe.step is None:  # else it calls the model as it likes
            check_inputs(model, place_of(recipe.model))
        specs = specs_of(model, recipe.changing)
        layout = Layout(specs, shards=max(1, settings.ps), placement=settings.placement)
    # Also where the run goes on: frozen parameters must be the same on every task, and not every task sees the logdir.
    warm = warm_start(model, Path(settings.init_from)) if settings.init_from else ()
    note = "; ".join(filter(None, [begin_training(model), idle]))
    parts: dict[str, object] = {
        **{f"option {name}": _ordered(value) for name, value in sorted(settings.recipe_options.items())},
        "seed": settings.seed, "batch size": settings.batch_size, "frozen parameters": digest_of(frozen(model, layout)),
        "clip norm": recipe.clip_norm, "clip value": recipe.clip_value, "in flight": settings.terms.in_flight,
    }  # fmt: skip
    if recipe.rules:
        parts["rules"] = described(recipe.rules)
    if settings.by_samples:
        parts["shares"] = settings.plan
    if settled(settings, recipe).batches > 1:
        parts["batches per step"] = settled(settings, recipe).batches
    if warm:  # a file of this name may be another one elsewhere, and each ps task begins with its own
        parts["values of --init-from"] = digest_of(named_tensors(model))
    fingerprint = fingerprint_of(recipe.name, parts)
    return Built(recipe, model, layout, fingerprint, sources_of(settings.recipe) if found else "", note, warm)


def _ordered(value: object) -> object:
    """A dictionary as one that was written in another order."""
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, dict | list) else value


def settled(settings: Settings, recipe: Recipe) -> Settings:
    """With what the recipe says where nobody else does."""
    if settings.batches_per_step is not None or recipe.batches_per_step == 1:
        return settings
    return replace(settings, batches_per_step=recipe.batches_per_step)


def _clipping(recipe: Recipe, settings: Settings) -> Recipe:
    """What the command line says of clipping counts."""
    if settings.clip_norm is None and settings.clip_value is None:
        return recipe
    return replace(recipe, clip_norm=settings.clip_norm, clip_value=settings.clip_value)


def begin_training(model: nn.Module) -> str:
    """Call `train()`, as every training loop does, and leave alone what model() has put into `eval()`.

    A model that is in `eval()` as a whole, as pretrained ones are handed out, is put into `train()` as a whole; then a
    sentence says so.
    """
    still = [module for module in model.modules() if not module.training] if model.training else []
    whole = not model.training
    model.train()
    for module in still:
        module.training = False
    return "model() returned its model in eval(); as a whole it is trained in train()" if whole else ""


def data_of(recipe: Recipe, seed: int, sizes: tuple[int, int] = (BATCH_SIZE, BATCH_SIZE)) -> tuple[Data, str]:
    """The recipe's data, and its first samples in a few words. Raises InputError when they cannot be used.

    `sizes`: of the batches to train and to validate on, for loaders that have none of their own.

    What is random in `data()`, such as a split, follows from the run's seed alone: `evener eval` finds the same one.
    """
    seed_all(seed)
    with _made_by("data", recipe.data):
        data = as_data(recipe.data()).sized(*sizes)
        if recipe.step is not None:
            data = data.of_any_form()
        return data, look_at(data, pairs=recipe.step is None)


def loaded(built: Built, settings: Settings, task: str, report: Reporter) -> tuple[Data, Numbered, str]:
    """A task's data, the training set as leases, and its first samples in a few words; a long wait for them is told."""
    sizes = settings.batch_size, settings.eval_batch_size or settings.batch_size
    watch = Watch(task, report, time.monotonic)
    watch.start()
    try:
        watch.busy("its data: the first samples", LONG_DATA)
        data, words = data_of(built.recipe, settings.seed, sizes)
    finally:
        watch.stop()
    with _made_by("data", built.recipe.data) if isinstance(data.train, FromLoader) else nullcontext():
        return data, batches_of(data, settings), words


@contextmanager
def _made_by(part: str, function: object) -> Iterator[None]:
    """What is wrong with what a user's function made is told with the place of the function."""
    try:
        yield
    except (errors.ConfigError, errors.InputError) as error:
        place = place_of(function)
        if not place or place in error.what or str(getattr(function, "__module__", "")).startswith("evener."):
            raise
        raise type(error)(f"{part}(){place}: {error.what}", why=error.why, fix=error.fix) from error


def batches_of(data: Data, settings: Settings) -> Numbered:
    """The training data as leases.

    Raises:
        InputError: they are fewer samples than one batch.
        ConfigError: they are a DataLoader's, and the run's batch size is another one.
    """
    if isinstance(data.train, FromLoader):
        _check_batch_size(data.train, settings)
        return LoaderBatches(data.train, settings.seed)
    largest = max(settings.plan.sizes) if settings.by_samples else settings.batch_size
    if len(data.train) < largest:
        raise errors.InputError(
            f"{len(data.train)} training samples are fewer than one batch of {largest}.",
            why="a sample would come twice in one batch.",
            fix="lower --batch-size, or give more data.",
        )
    return Batches(data.train, batch_size=settings.batch_size, seed=settings.seed)


def _check_batch_size(train: FromLoader, settings: Settings) -> None:
    if settings.by_samples:
        raise errors.ConfigError(
            f"--batch-{'sizes' if settings.batch_sizes else 'by-speed'} beside data that are a DataLoader.",
            why="samples are shared out one by one, and what is in a batch is the loader's affair.",
            fix="give the data set itself, or leave the option out.",
        )
    if train.loading is not None or settings.batch_size in (BATCH_SIZE, train.size):
        return
    size = train.loader.batch_size
    raise errors.ConfigError(
        f"--batch-size {settings.batch_size} beside a DataLoader "
        + (f"with batch_size={size}." if size else "whose sampler decides what is in a batch."),
        why="what is in a batch is the loader's affair.",
        fix="leave --batch-size out, or make it an option of the recipe, which gives it to the loader.",
    )


def counted(settings: Settings, batches: Numbered) -> Settings:
    """The settings in the unit in which the data are counted: a DataLoader's are batches, one a lease."""
    if not isinstance(batches, LoaderBatches):
        return settings
    return replace(settings, batch_size=1, eval_batch_size=settings.eval_batch_size or batches.batch_size)


def checkpoints(settings: Settings) -> Path:
    return Path(settings.logdir) / "checkpoints"


def tell_and_log(task: str, report: Reporter, text: str) -> None:
    """For the person who watches, and for the log file that is read later."""
    log.warning("%s", text)
    report(Line(task, text))


def tell_start(built: Built, settings: Settings, task: str, report: Reporter) -> None:
    """What --init-from has done, for the one task of a run that owns the parameters, or all of them first."""
    if not built.warm:
        return
    if open_store(settings, writable=False).steps():
        tell_and_log(task, report, f"--init-from {settings.init_from} is not used: the logdir has a checkpoint")
        return
    for sentence in built.warm:
        tell_and_log(task, report, sentence)


def beginning(
    store: Store, saver: Saver, settings: Settings, task: str, report: Reporter
) -> tuple[Manifest, Contents] | None:
    """The newest good checkpoint, said aloud; None when there is nothing to continue."""
    tell = partial(tell_and_log, task, report)
    restored = store.newest(tell)
    if undone := lost(path_of(Path(settings.logdir)), restored[0].step if restored else 0):
        since = f"the checkpoint of step {restored[0].step}" if restored else "the start, before any checkpoint"
        tell(f"{undone} updates since {since} are lost")
    if restored is not None:
        restored = (in_unit(restored[0], settings.batch_size, by_samples=settings.by_samples), restored[1])
        step = restored[0].step
        path = str(store.path(step))
        saver.resumed(step, path)
        log.info("continues from step %d (%s)", step, path)
        report(Line(task, f"continues from step {step} ({path})"))
    return restored


def open_ledger(  # noqa: PLR0913 - what every beginning says, each once
    settings: Settings, *, generation: int, run: str, report: Reporter, task: str = "ps:0", marks: str = ""
) -> Ledger:
    """The logdir's ledger, for the owner of the global step; generation 0 is a run without ps tasks.

    `marks`: what stands at the end of the mode, as far as it is known now.
    """
    about = Begin(
        generation=generation, run=run, mode=settings.way + (SEVERAL if settings.batches > 1 else "") + marks,
        batch_size=settings.batch_size, seed=settings.seed, evener=VERSION,
    )  # fmt: skip
    tell = partial(tell_and_log, task, report)
    return Ledger(path_of(Path(settings.logdir)), about, clock=time.time, tell=tell)


def open_store(settings: Settings, *, writable: bool = True, tell: Callable[[str], None] = log.warning) -> Store:
    return Store(checkpoints(settings), writable=writable, tell=tell)
