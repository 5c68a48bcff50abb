"""The words of a command line: which are evener's, and which a program's own."""

from __future__ import annotations

import argparse

from evener.cli.launch import own_words
from evener.cli.options import dashed
from evener.errors import ConfigError


def parted(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words of `evener task`, and after --script a program with its own; those of `evener chaos`, and after --."""
    if argv[:1] == ["chaos"] and "--" in argv:
        return argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    if argv[:1] != ["task"] or "--script" not in argv:
        return argv, []
    at = argv.index("--script")
    if not argv[at + 1 :]:
        raise ConfigError("--script names no program.", fix="write --script train.py ARGS, at the end.")
    return argv[:at], argv[at + 1 :]


def evener_words(argv: list[str], top: argparse.ArgumentParser) -> list[str]:
    """The old programs wrote --ps_hosts; what `launch` hands on to a program stays as it is."""
    if argv[:1] != ["launch"]:
        return [dashed(word) for word in argv]
    commands = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return ["launch", *own_words(argv[1:], commands.choices["launch"])]
