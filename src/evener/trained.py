"""The trained model comes back: from a checkpoint to a module that is plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evener.errors import CheckpointError, ConfigError
from evener.models import check_model
from evener.recipes.recipe import Recipe, from_object, options_of, reference_of, resolve
from evener.recipes.references import place_of
from evener.state.checkpoint import MANIFEST, Manifest, Store, load
from evener.state.contents import Contents
from evener.state.tensors import named_tensors
from evener.state.values import unpack


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """One whole checkpoint."""

    path: Path
    manifest: Manifest
    contents: Contents

    def tensors(self, *, ema: bool) -> dict[str, Tensor]:
        """All that the model is, with moving averages where they are kept.

        Raises:
            ConfigError: averages are wanted and there are none.
        """
        if not ema:
            return self.contents.parameters
        if not self.contents.averages:
            raise ConfigError(
                f"{self.path} holds no moving averages.",
                why="the recipe that it was trained with kept none (ema_decay=None).",
                fix="leave out ema (--ema), or train with a recipe that has an ema_decay, such as 0.99.",
            )
        return {**self.contents.parameters, **self.contents.averages}


def find(path: Path) -> FoundCheckpoint:
    """A checkpoint from its directory, from a ``checkpoints`` directory or from a logdir: its newest good one.

    Raises:
        CheckpointError: there is none; a damaged one names the newest good one beside it.
    """
    if (path / MANIFEST).exists() or path.name.startswith("step-"):
        return _whole(path)
    for directory in (path, path / "checkpoints"):
        store = Store(directory, writable=False)
        if store.steps():
            newest = store.newest()
            assert newest is not None
            return FoundCheckpoint(store.path(newest[0].step), *newest)
    raise CheckpointError(
        f"there is no checkpoint in {path}.",
        why="it holds no directory step-* with a manifest.",
        fix="name a logdir of `evener train`, or one of its checkpoints/step-* directories.",
    )


def _whole(path: Path) -> FoundCheckpoint:
    try:
        return FoundCheckpoint(path, *load(path))
    except CheckpointError as error:
        store = Store(path.parent, writable=False)
        try:
            newest = store.newest()
        except CheckpointError:
            newest = None
        good = f"use the newest good one: {store.path(newest[0].step)}." if newest else "no other one here is whole."
        raise CheckpointError(error.what, why=error.why, fix=good) from error


def recipe_of(found: FoundCheckpoint, recipe: object, options: Mapping[str, Any]) -> Recipe:
    """The recipe with the options that the checkpoint was trained with, unless others are given.

    Args:
        recipe: a name, a `Recipe` or a function; None: the one that the checkpoint names.

    Raises:
        ConfigError: there is no such recipe, or the options do not fit it.
    """
    manifest = found.manifest
    if recipe is None:
        recipe = _known_here(found)
    if isinstance(recipe, Recipe):
        return from_object(recipe, options)
    name = recipe if isinstance(recipe, str) else reference_of(recipe)
    options = {**(unpack(manifest.options) if name and _same(name, manifest.recipe) else {}), **options}
    return resolve(recipe, options) if isinstance(recipe, str) else from_object(recipe, options)


def _same(one: str, other: str) -> bool:
    """A recipe in a file may be named by another path than when it was trained; the file's own name stays."""
    return one == other or (".py:" in one and Path(one).name == Path(other).name)


def _known_here(found: FoundCheckpoint) -> str:
    name = found.manifest.recipe
    try:
        options_of(name)
    except ConfigError as error:
        raise ConfigError(
            f"the recipe of {found.path} is not found here: {error.what}",
            why=f"the checkpoint names it as it was named in training, {name!r}; the model is made by it.",
            fix="run it in the directory of the training, or name it: --recipe path/to/file.py:name.",
        ) from error
    return name


def bring(found: FoundCheckpoint, recipe: Recipe, *, ema: bool = False) -> nn.Module:
    """The trained module in eval mode, in memory of its own on the CPU. PyTorch's random numbers are left as they were.

    Raises:
        CheckpointError: the checkpoint is of another model.
        ConfigError: averages are wanted and there are none.
    """
    tensors = found.tensors(ema=ema)
    with torch.random.fork_rng(devices=[]):
        model = recipe.model()
    check_model(model, place_of(recipe.model))
    model.cpu()
    for tensor in [*model.parameters(), *model.buffers()]:
        # A model that model() did not make anew may still be views of a run's memory.
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or not storage.resizable():
            tensor.data = tensor.data.clone()
    put(model, tensors, found.path)
    return model.eval()


def load_model(
    recipe: object, path: str | Path, *, ema: bool = False, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """See `evener.load`."""
    found = find(Path(path))
    return bring(found, recipe_of(found, recipe, options or {}), ema=ema)


def put(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load a checkpoint's tensors into a model. Raises CheckpointError naming the first difference."""
    mine = named_tensors(model)
    if unknown := sorted(tensors.keys() - mine.keys()):
        raise _foreign(path, f"it has {unknown[0]!r}, the model has not")
    for name, tensor in mine.items():  # in the model's order: that of the files is not always the same
        if name not in tensors:
            raise _foreign(path, f"it lacks {name!r}")
        if tensors[name].shape != tensor.shape:
            theirs, ours = list(tensors[name].shape), list(tensor.shape)
            raise _foreign(path, f"{name!r} is {theirs} in it, {ours} in the model")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])


def _foreign(path: Path, difference: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is of another model: {difference}.",
        why="a checkpoint fits the recipe and the options it was made with.",
        fix="give the same recipe and the same --set options.",
    )
