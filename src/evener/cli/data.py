"""The command line of data sets: evener data convert."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from evener import errors

FORMATS = ("tfrecord",)


def add_data(
    commands: Any,
    add_recipe_options: Callable[[argparse.ArgumentParser], None],
    recipe_options: Callable[[argparse.Namespace], dict[str, Any]],
) -> None:
    command = commands.add_parser("data", help="write a recipe's data as files of another format")
    actions = command.add_subparsers(dest="action", metavar="convert", required=True)
    convert = actions.add_parser("convert", help="its train and validation data; no file is ever replaced")
    add = convert.add_argument
    add("recipe", help="as for train")
    add("--to", metavar="|".join(FORMATS), required=True, help="the format to write")
    add("directory", metavar="OUT", help="where to; made if it does not exist")
    add("--shards", type=int, default=1, metavar="N", help="files for each of train and validation; default 1")
    add_recipe_options(convert)
    convert.set_defaults(run=lambda args: run_convert(args, recipe_options(args)), options=convert.options())


def run_convert(args: argparse.Namespace, recipe_options: dict[str, Any]) -> int:
    from evener.api import convert

    if args.to not in FORMATS:
        raise errors.ConfigError(f"data cannot be converted to {args.to!r}.", fix=f"use --to {', '.join(FORMATS)}.")
    made = convert(args.recipe, args.directory, shards=args.shards, recipe_options=recipe_options)
    for written in made:
        print(f"{written.path}: {written.records:,} records, {written.nbytes:,} bytes")
    print(f"in all {sum(w.records for w in made):,} records, {sum(w.nbytes for w in made):,} bytes")
    return 0
