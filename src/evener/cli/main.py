"""The command line: declares, calls, prints; no logic."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from evener import errors
from evener.cli.asked import recipe_options, settings_options, tell
from evener.cli.chaos import add_chaos
from evener.cli.cluster import add_doctor, add_existing_servers, add_explain, add_keys, add_server, flags, old_flags
from evener.cli.data import add_data
from evener.cli.devices import add_device_options, add_devices
from evener.cli.endings import OK, USAGE, ending
from evener.cli.export import add_export
from evener.cli.launch import add_launch
from evener.cli.looking import add_audit, add_eval
from evener.cli.options import (
    WORKERS,
    add_cluster_options,
    add_link_options,
    add_pipeline_options,
    add_recipe_options,
    add_training_options,
    truth,
    unknown_option,
    workers,
)
from evener.cli.ray import add_detached, add_launcher_options, launcher_options, run_detached
from evener.cli.words import evener_words, parted
from evener.leaving import leave
from evener.view.outlet import unhindered

if TYPE_CHECKING:
    pass


#: Commands that run for hours.
LONG = (["train"], ["launch"], ["attach"], ["task"], ["server"])


class Commands(argparse.ArgumentParser):
    """Wrong usage ends with the same three lines as every other error."""

    def error(self, message: str) -> Any:
        raise errors.ConfigError(f"{message}.", fix=f"see {self.prog} --help.")

    def options(self) -> list[str]:
        return list(self._option_string_actions)


def parser() -> argparse.ArgumentParser:
    top = Commands(prog="evener", description="Train one PyTorch model on many workers of unequal speed.")
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    add_train(commands)
    add_launch(commands)
    add_detached(commands)
    add_task(commands)
    add_eval(commands, add_recipe_options, recipe_options)
    add_export(commands, add_recipe_options, recipe_options)
    add_audit(commands)
    add_chaos(commands)
    add_explain(commands)
    add_server(commands)
    add_doctor(commands)
    add_keys(commands)
    add_data(commands, add_recipe_options, recipe_options)
    add_devices(commands)
    return top


def add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train a recipe: in one process, or with ps and worker tasks")
    train.add_argument("recipe", help='"mnist", "package.module:recipe" or "path/to/file.py:recipe"')
    cluster = train.add_argument_group("who trains")
    add = cluster.add_argument
    add("--ps", type=int, help="parameter server tasks; 0 (default): one process, no cluster")
    add("--workers", "--num-workers", type=workers, metavar="W|M..N", help=WORKERS)
    add(
        "--towers",
        type=int,
        metavar="N",
        help="instead: N processes that average their gradients (torchrun's by itself)",
    )
    add("--ps-hosts", "--ps-host", metavar="HOST:PORT,...", help="fixed addresses of the ps tasks")
    add("--worker-hosts", "--worker-host", metavar="HOST:PORT,...", help="standing servers: those of the workers")
    add_existing_servers(train)
    add_launcher_options(train)
    add_pipeline_options(train)
    add_link_options(train)
    add_training_options(train)
    add_device_options(train)
    add = train.add_argument
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")
    add("--quiet", action="store_true", help="show no progress")
    add("--max-restarts", type=int, metavar="N", help="of each task that was killed; default 3")
    train.set_defaults(run=run_train, options=train.options())


def add_task(commands: Any) -> None:
    task = commands.add_parser("task", help="be one task of a cluster: one such command per machine")
    task.add_argument("recipe", nargs="?", help="as for train; instead, last: --script train.py ARGS")
    add_cluster_options(task)
    task.add_argument("--workers", type=workers, metavar="M..N", help="the fewest and the most workers that train")
    text = "a directory that all tasks share: ps tasks with port 0 tell there which one they got"
    task.add_argument("--rendezvous", default="", metavar="DIR", help=text)
    add_existing_servers(task)
    add_link_options(task)
    add_training_options(task)
    add_device_options(task)
    add = task.add_argument
    add("--sync-replicas", type=truth, nargs="?", const=True, default=False, help="the same as --mode sync")
    add("--download-only", type=truth, nargs="?", const=True, default=False, help="load the data, train nothing")
    task.set_defaults(run=run_task, options=[*task.options(), "--script"])


def run_train(args: argparse.Namespace) -> int:
    from evener.api import run
    from evener.cluster.environment import Flags, find_cluster, hosts

    start = Path.cwd()
    options = settings_options(args) | (launcher_options(args) if "launcher" in args else {})
    if args.existing_servers:
        named = Flags(ps_hosts=args.ps_hosts or "", worker_hosts=args.worker_hosts or "")
        options["existing_servers"] = find_cluster(named)
        options.pop("ps_hosts", None)
    elif args.worker_hosts:
        raise errors.ConfigError("--worker-hosts is for --existing-servers.", fix="use --workers W, or `evener task`.")
    elif "ps_hosts" in options:
        options["ps_hosts"] = tuple(hosts(options["ps_hosts"]))
    if options.get("detach"):
        return run_detached(args, options)
    result = run(args.recipe, stream=sys.stderr if args.json else sys.stdout, quiet=args.quiet, **options)
    if not result.leads:
        return OK  # tower 0 of torchrun's tells
    if args.json:
        print(json.dumps(result.as_dict()))
    else:
        tell(result, start)
    return OK


def run_task(args: argparse.Namespace) -> int:
    from evener.commands.clustered import be_task

    start = Path.cwd()
    old_flags(args)
    if args.existing_servers and not args.download_only:
        return run_client(args)
    if (args.recipe is None) != bool(args.program):
        fix = "name a recipe, or --script train.py."
        raise errors.ConfigError("a task trains a recipe or runs a program.", fix=fix)
    options = settings_options(args, recipe=not args.program)
    options.pop("ps_hosts", None)
    options.pop("ps", None)
    result = be_task(
        args.recipe, flags(args), program=args.program,
        download_only=args.download_only, rendezvous=args.rendezvous, stream=sys.stdout,
        **options,
    )  # fmt: skip
    if result is not None:
        tell(result, start)
    return OK


def run_client(args: argparse.Namespace) -> int:
    """`--existing_servers=True` of the old programs: worker 0 is the client of all servers, the others have none."""
    if (args.job_name, args.task_index) == ("worker", 0):
        args.ps = args.json = args.quiet = None
        return run_train(args)
    print(f"{args.job_name}:{args.task_index} has nothing to do: its standing server works for the client, worker:0.")
    return OK


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code says how it ended.

    0 finished, 1 failed, 2 wrong usage, 3 replaced by a newer process of the same task, 4 preempted, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    # What runs for hours must not wait for who reads it; what answers a question has nothing else to do.
    with unhindered() if argv[:1] in LONG else contextlib.nullcontext():
        return ended(argv)


def ended(argv: list[str]) -> int:
    """Run one command and tell how it ended, if it did not as it should."""
    try:
        return piped(argv)
    except (KeyboardInterrupt, Exception) as error:
        end = ending(error)
    print(end.text, file=sys.stderr)
    if "--json" in argv:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(end.as_dict()), flush=True)
    return end.status


def piped(argv: list[str]) -> int:
    """`evener ... | head`: whoever read has enough, which is no error; nor may Python's own flush at exit fail."""
    try:
        status = command(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return status


def parsed(argv: list[str]) -> argparse.Namespace:
    """What a command line says. Raises ConfigError for what evener does not know."""
    top = parser()
    words, program = parted(argv)
    args, unknown = top.parse_known_args(evener_words(words, top))
    args.program = program
    if unknown:
        raise unknown_option(unknown[0], args)
    return args


def command(argv: list[str]) -> int:
    args = parsed(argv)
    if args.version:
        from importlib.metadata import version

        print(f"evener {version('evener')}")
        return OK
    if args.command is None:
        parser().print_help()
        return USAGE
    return int(args.run(args))


def enter() -> NoReturn:
    """The command `evener`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file must not fail a run that went well
    leave(main())


if __name__ == "__main__":
    enter()
