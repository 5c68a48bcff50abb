"""From a recipe and settings to the parts that every way of running needs: the same on every task."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from evener.checkpoint import Manifest, Store
from evener.recipe import Recipe, check_model, resolve
from evener.report import Line, Reporter
from evener.saver import Saver
from evener.settings import Settings
from evener.state import Contents
from evener.tensors import digest_of_frozen, specs_of
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


def build(settings: Settings, recipe: Recipe | None = None) -> Built:
    """Make the model from the run's seed, so that every task makes the same one without talking."""
    recipe = recipe or resolve(settings.recipe, settings.recipe_options)
    torch.manual_seed(settings.seed)
    model = recipe.model()
    check_model(model)
    model.train()
    layout = Layout(specs_of(model), shards=max(1, settings.ps), placement=settings.placement)
    options = json.dumps(dict(settings.recipe_options), sort_keys=True, default=str)
    text = f"{options} seed={settings.seed} batch_size={settings.batch_size} frozen={digest_of_frozen(model)}"
    return Built(recipe, model, layout, f"{recipe.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}")


def checkpoints(settings: Settings) -> Path:
    return Path(settings.logdir) / "checkpoints"


def beginning(
    store: Store, saver: Saver, settings: Settings, task: str, report: Reporter
) -> tuple[Manifest, Contents] | None:
    """The newest good checkpoint, said aloud; None when there is nothing to continue."""

    def tell(text: str) -> None:
        log.warning("%s", text)
        report(Line(task, text))

    restored = store.newest(tell)
    if restored is not None:
        step = restored[0].step
        path = str(store.path(step))
        saver.resumed(step, path)
        log.info("continues from step %d (%s)", step, path)
        report(Line(task, f"continues from step {step} ({path})"))
        before, now = restored[0].batch_size, settings.batch_size
        if before not in (0, now):
            tell(f"warning: the batch size was {before} and is {now}: some samples come twice or not at all")
    return restored


def open_store(settings: Settings, *, writable: bool = True) -> Store:
    return Store(checkpoints(settings), writable=writable)
