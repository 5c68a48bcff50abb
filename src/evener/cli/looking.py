"""Commands that look at what was trained: evener eval, evener audit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from evener.cli.endings import FAILED, OK


def add_eval(
    commands: Any,
    add_recipe_options: Callable[[argparse.ArgumentParser], None],
    recipe_options: Callable[[argparse.Namespace], dict[str, Any]],
) -> None:
    command = commands.add_parser("eval", help="validate a checkpoint")
    command.add_argument("recipe", help="as for train")
    command.add_argument("--checkpoint", required=True, metavar="DIR", help="a checkpoint, or a logdir: its newest")
    add_recipe_options(command)
    command.add_argument("--place", metavar="MODULE=DEVICE,...", help="as for train; one DEVICE: all of it there")
    text = "samples validated at once; default: the batch size that it was trained with"
    command.add_argument("--eval-batch-size", type=int, metavar="B", help=text)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=lambda args: run_eval(args, recipe_options(args)), options=command.options())


def add_audit(commands: Any) -> None:
    command = commands.add_parser("audit", help="check that every sample of a run was applied exactly once")
    command.add_argument("logdir", metavar="LOGDIR", help="of a run that ended, or still trains")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run_audit, options=command.options())


def run_eval(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from evener.api import evaluate

    values = evaluate(
        args.recipe, args.checkpoint, recipe_options=options, place=args.place,
        batch_size=args.eval_batch_size,
    )  # fmt: skip
    if args.json:
        print(json.dumps(values))
    else:
        for name, value in values.items():
            print(f"{name:28} {value:.4f}" if isinstance(value, float) else f"{name:28} {value}")
    return OK


def run_audit(args: argparse.Namespace) -> int:
    from evener.api import audit

    account = audit(args.logdir)
    print(json.dumps(account.as_dict()) if args.json else account)
    return OK if account.clean else FAILED
