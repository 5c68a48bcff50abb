"""evener: train one PyTorch model on many workers of unequal speed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evener.api import evaluate, launch, load, run
    from evener.data.dataset import Data, MapStyle, Tensors
    from evener.data.loader import loader
    from evener.devices.marks import device
    from evener.errors import EvenerError
    from evener.figures import EarlyStopping
    from evener.loop.join import join
    from evener.recipes.recipe import Recipe, accuracy, recipe
    from evener.result import Result
    from evener.session.hooks import Hook, StopAtStep
    from evener.settings import Settings
    from evener.state.schedules import each_epoch, each_validation

_HOMES = {
    "run": "evener.api", "launch": "evener.api", "join": "evener.loop.join",
    "evaluate": "evener.api", "load": "evener.api", "Recipe": "evener.recipes.recipe",
    "accuracy": "evener.recipes.recipe", "recipe": "evener.recipes.recipe",
    "Result": "evener.result", "Settings": "evener.settings", "EvenerError": "evener.errors",
    "Hook": "evener.session.hooks", "StopAtStep": "evener.session.hooks", "EarlyStopping": "evener.figures",
    "each_epoch": "evener.state.schedules", "each_validation": "evener.state.schedules", "Data": "evener.data.dataset",
    "Tensors": "evener.data.dataset", "MapStyle": "evener.data.dataset", "device": "evener.devices.marks",
    "loader": "evener.data.loader",
}  # fmt: skip

__all__ = [
    "Data", "EarlyStopping", "EvenerError", "Hook", "MapStyle", "Recipe", "Result", "Settings", "StopAtStep",
    "Tensors", "accuracy", "device", "each_epoch", "each_validation", "evaluate", "join", "launch", "load", "loader",
    "recipe", "run",
]  # fmt: skip

#: Modules with names of their own, such as `evener.rules.DelayAdaptive`.
_ROOMS = ("modes", "rules")


def __getattr__(name: str) -> Any:
    """Names are found when they are used: `evener --help` and the launcher need no PyTorch."""
    if name in _ROOMS:
        return import_module(f"evener.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'evener' has no attribute {name!r}")

    return getattr(import_module(_HOMES[name]), name)
