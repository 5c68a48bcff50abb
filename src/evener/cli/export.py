"""The command line of the trained model: evener export."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evener.commands.export import Exported


def add_export(
    commands: Any,
    add_recipe_options: Callable[[argparse.ArgumentParser], None],
    recipe_options: Callable[[argparse.Namespace], dict[str, Any]],
) -> None:
    command = commands.add_parser("export", help="write a trained model as one file for plain PyTorch")
    add = command.add_argument
    add("logdir", metavar="LOGDIR", help="of a run: its newest checkpoint; or one checkpoint")
    add("file", metavar="FILE", help="the state_dict, as model.pt or model.safetensors")
    add("--ema", action="store_true", help="the moving averages of the parameters")
    add("--recipe", metavar="RECIPE", help="as for train; default: the one that the checkpoint names")
    add("--force", action="store_true", help="replace FILE")
    add("--json", action="store_true", help="print one JSON object")
    add_recipe_options(command)
    command.set_defaults(run=lambda args: run_export(args, recipe_options(args)), options=command.options())


def run_export(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from evener.api import export

    made = export(args.logdir, args.file, args.recipe, ema=args.ema, recipe_options=options, force=args.force)
    print(json.dumps(made.as_dict()) if args.json else told(made))
    return 0


def told(made: Exported) -> str:
    """One line: what was written, and how it is read."""
    averages = ", moving averages" if made.ema else ""
    inside = ", without torch.compile" if made.compiled else ""
    return (
        f"{made.file}: {made.recipe} at step {made.global_step}{averages}{inside}, {made.tensors} tensors, "
        f"{made.nbytes:,} bytes; read it by: {made.load}"
    )
