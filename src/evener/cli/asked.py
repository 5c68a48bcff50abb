"""What a command line asks for, as options of a run; and the figures that answer it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evener import errors
from evener.modes import OPTIONS
from evener.settings import Settings

if TYPE_CHECKING:
    from evener.result import Result

#: Flags that are options of the shipped recipes: --hidden-units 100 is --set hidden=100.
RECIPE_FLAGS = ("data", "data_dir", "download", "skip_bad_records", "optimizer", "learning_rate", "hidden")


def recipe_options(args: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(args, name) for name in RECIPE_FLAGS if getattr(args, name) is not None}
    for assignment in args.assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise errors.ConfigError(f"--set {assignment} assigns nothing.", fix="write --set NAME=VALUE.")
        options[name.replace("-", "_")] = value
    return options


def settings_options(args: argparse.Namespace, *, recipe: bool = True) -> dict[str, Any]:
    """What the command line says of the run; `recipe`: it trains one, which has options of its own."""
    known = Settings.__dataclass_fields__.keys() - {"recipe", "script", "script_args"} | OPTIONS.keys()
    options = {name: value for name, value in vars(args).items() if name in known and value is not None}
    return {**options, "recipe_options": recipe_options(args)} if recipe else options


def tell(result: Result, start: Path) -> None:
    """`start`: where the person is, wherever the recipe's code has gone."""
    from evener.view.texts import installed, summary

    print(summary(result, lambda name: installed(name, start), start))
