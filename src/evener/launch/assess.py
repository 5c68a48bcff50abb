"""A checkpoint on a recipe's validation set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evener.checkpoint import MANIFEST, Manifest, Store, load
from evener.data.chance import seed_all
from evener.data.dataset import as_data
from evener.devices import place, prepare_process
from evener.devices.plan import parse
from evener.errors import CheckpointError, InputError
from evener.models import check_model
from evener.recipe import Recipe, from_object, resolve
from evener.session.evaluate import evaluate


def assess(
    recipe: str | Recipe,
    path: Path,
    options: Mapping[str, Any],
    where: Mapping[str, str] | str | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Metrics of one checkpoint, with and without moving averages, and its global step.

    Raises:
        CheckpointError: there is no whole checkpoint, or it is of another model.
        ConfigError: `where` names a module or a device that does not exist.
    """
    prepare_process(torch.get_num_threads())
    found = find(path)
    manifest, contents = load(found)
    made = from_object(recipe, options) if isinstance(recipe, Recipe) else _resolve(recipe, manifest, options)
    seed_all(0)
    data = as_data(made.data())
    if not data.validations:
        raise InputError(f"recipe {made.name!r} has no validation data.", fix="let data() return (train, validation).")
    model = made.model()
    check_model(model)
    if where:  # else all is on the CPU, also what the model marks
        place(model, parse(where) if isinstance(where, str) else where, soft=False)
    put(model, contents.parameters, found)
    values: dict[str, Any] = {"checkpoint": str(found), "global_step": manifest.step}
    size = batch_size or manifest.batch_size or 100
    values |= evaluate(model, made, data.validations, batch_size=size)
    if contents.averages:
        put(model, {**contents.parameters, **contents.averages}, found)
        values |= evaluate(model, made, data.validations, batch_size=size, suffix="_ema")
    return values


def _resolve(recipe: str, manifest: Manifest, options: Mapping[str, Any]) -> Recipe:
    """The options that it was trained with count, unless others are given."""
    trained = manifest.options if manifest.recipe == recipe else {}
    return resolve(recipe, {**trained, **options})


def find(path: Path) -> Path:
    """A checkpoint's directory from itself, from a ``checkpoints`` directory or from a logdir.

    Raises:
        CheckpointError: there is none; a damaged one names the newest good one beside it.
    """
    if (path / MANIFEST).exists() or path.name.startswith("step-"):
        return _whole_or_named(path)
    for directory in (path, path / "checkpoints"):
        store = Store(directory, writable=False)
        if store.steps():
            newest = store.newest()
            assert newest is not None
            return store.path(newest[0].step)
    raise CheckpointError(
        f"there is no checkpoint in {path}.",
        why="it holds no directory step-* with a manifest.",
        fix="name a logdir of `evener train`, or one of its checkpoints/step-* directories.",
    )


def _whole_or_named(path: Path) -> Path:
    try:
        load(path)
    except CheckpointError as error:
        store = Store(path.parent, writable=False)
        try:
            newest = store.newest()
        except CheckpointError:
            newest = None
        good = f"use the newest good one: {store.path(newest[0].step)}." if newest else "no other one here is whole."
        raise CheckpointError(error.what, why=error.why, fix=good) from error
    return path


def put(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load named tensors into a model. Raises CheckpointError naming the first difference."""
    state = model.state_dict(keep_vars=True)
    travelling = {id(mine): tensors[name] for name, mine in state.items() if name in tensors}
    if unknown := sorted(tensors.keys() - state.keys()):
        raise _foreign(path, f"it has {unknown[0]!r}, the model has not")
    for name, mine in state.items():  # in the model's order: that of the files is not always the same
        if not isinstance(mine, Tensor):
            continue  # extra state, which training does not change
        tensor = travelling.get(id(mine))  # a tied tensor has several names and travels under one
        if tensor is None:
            raise _foreign(path, f"it lacks {name!r}")
        if tensor.shape != mine.shape:
            raise _foreign(path, f"{name!r} is {list(tensor.shape)} in it, {list(mine.shape)} in the model")
    model.load_state_dict(
        {name: travelling[id(mine)] if isinstance(mine, Tensor) else mine for name, mine in state.items()}
    )


def _foreign(path: Path, difference: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is of another model: {difference}.",
        why="a checkpoint fits the recipe and the options it was made with.",
        fix="give the same recipe and the same --set options.",
    )
