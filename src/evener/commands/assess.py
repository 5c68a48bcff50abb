"""A checkpoint on a recipe's validation set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evener.data.chance import seed_all
from evener.data.dataset import as_data
from evener.data.loader import FromLoader
from evener.devices import place, prepare_process
from evener.devices.plan import parse
from evener.errors import InputError
from evener.models import check_model
from evener.recipes.recipe import Recipe
from evener.session.evaluate import evaluate
from evener.settings import BATCH_SIZE
from evener.trained import find, put, recipe_of


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
    made = recipe_of(found, recipe, options)
    seed_all(max(0, found.manifest.seed))  # a random split is that of the training
    data = as_data(made.data())
    if made.step is not None:
        data = data.of_any_form()
    if not data.validations:
        raise InputError(f"recipe {made.name!r} has no validation data.", fix="let data() return (train, validation).")
    model = made.model()
    check_model(model)
    if where:  # else all is on the CPU, also what the model marks
        place(model, parse(where) if isinstance(where, str) else where, soft=False)
    put(model, found.tensors(ema=False), found.path)
    values: dict[str, Any] = {"checkpoint": str(found.path), "global_step": found.manifest.step}
    usual = BATCH_SIZE if found.manifest.by_samples else found.manifest.batch_size  # which counts single samples there
    size = batch_size or usual or BATCH_SIZE
    if batch_size is None and isinstance(data.train, FromLoader):  # the manifest counts its batches
        size = BATCH_SIZE if data.train.loading is not None else data.train.size
    data = data.sized(size, size)
    values |= evaluate(model, made, data.validations, batch_size=size)
    if found.contents.averages:
        put(model, found.tensors(ema=True), found.path)
        values |= evaluate(model, made, data.validations, batch_size=size, suffix="_ema")
    return values
