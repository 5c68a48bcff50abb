"""Options of runs on a Ray cluster, and the commands for those that were detached. Declares, calls, prints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from evener.cli.asked import tell
from evener.commands.on_ray import LAUNCHERS
from evener.launch.starters.ray.asked import NAMES, PLACEMENTS


def add_launcher_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("on a Ray cluster").add_argument
    add("--launcher", choices=LAUNCHERS, help="where tasks run: processes of this machine (default), or Ray's actors")
    add("--ray-address", metavar="ADDRESS", help="auto, HOST:PORT, ray://HOST:10001, or local: one that is "
        "started for the run; default: the Ray that runs here, else local")  # fmt: skip
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


def add_detached(commands: Any) -> None:
    """`attach` and `stop`."""
    attach = commands.add_parser("attach", help="watch a run that was left on a Ray cluster, until it is over")
    attach.add_argument("name", metavar="RUN", help="as --detach told it")
    attach.add_argument("--ray-address", metavar="ADDRESS", default="", help="as for train")
    attach.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    attach.add_argument("--quiet", action="store_true", help="show no progress")
    attach.set_defaults(run=run_attach, options=attach.options())
    stop = commands.add_parser("stop", help="let a run that was left on a Ray cluster save, and end it")
    stop.add_argument("name", metavar="RUN", help="as --detach told it")
    stop.add_argument("--ray-address", metavar="ADDRESS", default="", help="as for train")
    stop.set_defaults(run=run_stop, options=stop.options())


def run_detached(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """`train` and `launch` with --detach."""
    from evener.commands.detached import detach

    script = getattr(args, "script", None)
    rest = {name: value for name, value in options.items() if name not in ("launcher", "detach")}
    name = detach(script or args.recipe, args.args if script else (), rest, _say, program=bool(script))
    print(f"it runs on the cluster: evener attach {name} watches it, evener stop {name} ends it")
    return 0


def run_attach(args: argparse.Namespace) -> int:
    from evener.commands.detached import attach

    result = attach(args.name, args.ray_address, stream=sys.stderr if args.json else sys.stdout, quiet=args.quiet)
    if args.json:
        print(json.dumps(result.as_dict()))
    else:
        tell(result, Path.cwd())
    return 0


def run_stop(args: argparse.Namespace) -> int:
    from evener.commands.detached import stop

    stop(args.name, args.ray_address, _say)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
