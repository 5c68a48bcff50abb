"""`evener launch train.py ARGS`: declares, calls, prints. What stands after the program's name is the program's own."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from evener.cli.asked import settings_options, tell
from evener.cli.cluster import add_existing_servers
from evener.cli.devices import add_gpu_options
from evener.cli.options import (
    WORKERS,
    add_failure_options,
    add_keeping_options,
    add_link_options,
    add_mode_options,
    add_size_options,
    dashed,
    workers,
)
from evener.cli.ray import add_launcher_options, launcher_options, run_detached
from evener.errors import ConfigError


def add_launch(commands: Any) -> None:
    # Without abbreviations: argparse would look for them among the program's own words too.
    text = "run a program with a training loop of its own (evener.join)"
    launch = commands.add_parser("launch", help=text, allow_abbrev=False)
    launch.add_argument("script", help="the program, path/to/train.py")
    launch.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS", help="its arguments, as they are")
    add = launch.add_argument_group("who trains").add_argument
    add("--ps", type=int, help="parameter server tasks; 0 (default): one process, no cluster")
    add("--workers", "--num-workers", type=workers, metavar="W|M..N", help=WORKERS)
    add("--towers", type=int, metavar="N", help="instead: N processes that average their gradients")
    add("--ps-hosts", "--ps-host", metavar="HOST:PORT,...", help="fixed addresses of the ps tasks")
    add("--train-steps", type=int, metavar="N", help="end after so many global steps; default: when the loops end")
    add("--seed", type=int, help="of everything random; default 0")
    add("--threads", type=int, metavar="T", help="PyTorch threads of each task; default 1")
    add("--worker-hosts", "--worker-host", metavar="HOST:PORT,...", help="standing servers: those of the workers")
    add_existing_servers(launch)
    add_launcher_options(launch)
    add("--batch-size", type=int, metavar="B", help="with --batch-by-speed: samples of a batch, in the mean")
    add_mode_options(launch)
    add_size_options(launch)
    add_link_options(launch)
    add_gpu_options(launch)
    add_keeping_options(launch)
    add_failure_options(launch)
    add = launch.add_argument
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")
    add("--quiet", action="store_true", help="show no progress")
    add("--max-restarts", type=int, metavar="N", help="of each task that was killed; default 3")
    launch.set_defaults(run=run_launch, options=launch.options())


def own_words(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The command line with old spellings (--ps_hosts) made new ones, but for what is the program's own."""
    takes = {name: action.nargs != 0 for name, action in parser._option_string_actions.items()}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = dashed(rest.pop(0))
        words.append(word)
        if not word.startswith("-"):
            break
        if "=" not in word and takes.get(word, False) and rest:
            words.append(rest.pop(0))
    return words + rest


def run_launch(args: argparse.Namespace) -> int:
    from evener.api import launch
    from evener.cluster.environment import Flags, find_cluster, hosts

    start = Path.cwd()
    options = settings_options(args, recipe=False) | launcher_options(args)
    if args.existing_servers:
        named = Flags(ps_hosts=args.ps_hosts or "", worker_hosts=args.worker_hosts or "")
        options["existing_servers"] = find_cluster(named)
        options.pop("ps_hosts", None)
    elif args.worker_hosts:
        fix = "use --workers W, or `evener task --script`."
        raise ConfigError("--worker-hosts is for --existing-servers.", fix=fix)
    elif "ps_hosts" in options:
        options["ps_hosts"] = tuple(hosts(options["ps_hosts"]))
    if options.get("detach"):
        return run_detached(args, options)
    stream = sys.stderr if args.json else sys.stdout
    result = launch(args.script, *args.args, stream=stream, quiet=args.quiet, **options)
    if args.json:
        print(json.dumps(result.as_dict()))
    else:
        tell(result, start)
    return 0
