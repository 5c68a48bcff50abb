"""Options of runs on a Ray cluster, and the commands for those that were detached. Declares, calls, prints."""

from __future__ import annotations

import argparse
from typing import Any

from evener.commands.on_ray import LAUNCHERS
from evener.launch.starters.ray.asked import NAMES, PLACEMENTS


def add_launcher_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("on a Ray cluster").add_argument
    add("--launcher", choices=LAUNCHERS, help="where tasks run: processes of this machine (default), or Ray's actors")
    add("--ray-address", metavar="ADDRESS", help="auto, HOST:PORT or ray://HOST:10001; default: the Ray that runs "
        "here, or one that is started for the run")  # fmt: skip
    add("--resources-per-worker", metavar="JSON", help="""what Ray sets aside for each worker, as '{"GPU": 1}'; """
        "default: one CPU")  # fmt: skip
    add("--resources-per-ps", metavar="JSON", help="the same for each ps task")
    add("--ray-placement", choices=PLACEMENTS, help="workers near each other (default) or apart; ps tasks are spread")
    add("--runtime-env", metavar="JSON", help="what Ray brings to the nodes; default: this directory, if code is in it")
    add("--detach", action="store_true", help="leave the run on the cluster: evener attach RUN, evener stop RUN")


def launcher_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of them."""
    given = {name: getattr(args, name) for name in ("launcher", *NAMES)}
    return {name: value for name, value in given.items() if value not in (None, False)}
