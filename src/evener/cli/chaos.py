"""`evener chaos RECIPE_OR_SCRIPT`: declares, calls, prints. What stands after the name is for `train` or `launch`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from evener.choices import counts_of
from evener.cli.endings import FAILED, OK
from evener.cli.options import unknown_option
from evener.errors import ConfigError

if TYPE_CHECKING:
    from evener.commands.chaos.training import Rehearsed

#: Options with which the tasks would not be processes of this command, or its files not its own.
ELSEWHERE = ("logdir", "existing_servers", "worker_hosts", "ps_hosts", "resume_step")


def add_chaos(commands: Any) -> None:
    """`train` and `launch` must be among the commands: their options are understood here."""
    text = "play faults on the processes of a training, and say whether it survives them"
    command = commands.add_parser("chaos", help=text)
    add = command.add_argument
    add("target", metavar="RECIPE_OR_SCRIPT", help='what to train: a recipe as for train, or "path/to/train.py"')
    text = "options of evener train, or of evener launch; after -- a script's own words"
    add("rest", nargs=argparse.REMAINDER, metavar="OPTIONS", help=text)
    add("--seed", type=int, default=7, metavar="S", help="of the first schedule, the next has S + 1; default 7")
    add("--schedules", type=int, default=5, metavar="N", help="how many; default 5")
    kinds = "kill (-9), stop (SIGSTOP for a while), slow (a worker all along), cut (a worker's links to the ps tasks)"
    add("--faults", metavar="KIND,...", help=f"{kinds}; default: all that can be here")
    text = "seconds for each run; default 10 times the undisturbed one, at least 60"
    add("--limit", type=float, metavar="SECONDS", help=text)
    text = "how much worse than undisturbed the final accuracy, or else loss, may be; default: nobody asks"
    add("--tolerance", type=float, metavar="X", help=text)
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")
    command.set_defaults(run=run_chaos, options=command.options(), parsers=commands.choices)


def is_script(target: str) -> bool:
    """A file is a program; a name in a file, or of a recipe that ships, is a recipe."""
    return target.endswith(".py")


def rehearsed(args: argparse.Namespace) -> Rehearsed:
    """What is to be played, once `train` or `launch` has understood its options.

    Raises:
        ConfigError: it knows one of them not, or cannot be played with it.
    """
    from evener.commands.chaos.training import Rehearsed

    script = is_script(args.target)
    words = [*args.rest, args.target, *args.program] if script else [args.target, *args.rest]
    name = "launch" if script else "train"
    run, unknown = args.parsers[name].parse_known_args(words)
    run.command, run.options = name, args.parsers[name].get_default("options")
    wrong = unknown or ([run.script] if script and run.script != args.target else [])
    if wrong and wrong[0].partition("=")[0] in args.options:
        raise ConfigError(f"{wrong[0]} stands after {args.target}.", fix=f"write it before {args.target}.")
    if wrong:
        raise unknown_option(wrong[0], run)
    if not script and args.program:
        raise ConfigError("a recipe has no words of its own after --.", fix="write --set NAME=VALUE.")
    _check(run, args)
    args.json = args.json or run.json
    return Rehearsed(
        args.target, tuple(args.rest), tuple(args.program), script,
        ps=run.ps or 0, workers=_most(run.workers) if run.ps else (run.towers or 1), slow=bool(run.slow),
    )  # fmt: skip


def _most(workers: int | str | None) -> int:
    return counts_of(workers)["workers"] if isinstance(workers, str) else workers or 1


def _check(run: argparse.Namespace, args: argparse.Namespace) -> None:
    for name in ELSEWHERE:
        if getattr(run, name, None):
            why = "each run has a new logdir of its own" if name in ("logdir", "resume_step") else ""
            option = "--" + name.replace("_", "-")
            told = why or "only processes that it has started itself are disturbed"
            raise ConfigError(f"evener chaos takes no {option}.", why=f"{told}.", fix="leave it out.")
    if (getattr(run, "pipeline_stages", None) or 1) > 1:
        raise ConfigError("evener chaos plays no pipelines.", why="a dead stage ends the run.", fix="use ps tasks.")
    if args.schedules < 1 or (args.limit is not None and args.limit <= 0):
        raise ConfigError("--schedules and --limit must be above 0.", fix="write --schedules 5 --limit 60.")
    if args.tolerance is not None and not args.tolerance >= 0:
        raise ConfigError(f"--tolerance {args.tolerance} cannot be.", fix="write 0 or more, as --tolerance 0.02.")


def run_chaos(args: argparse.Namespace) -> int:
    from evener.commands.chaos.kit import Wishes, rehearse

    training = rehearsed(args)
    faults = tuple(dict.fromkeys(kind.strip() for kind in args.faults.split(","))) if args.faults else ()
    wishes = Wishes(args.seed, args.schedules, faults, args.limit, args.tolerance)
    stream = sys.stderr if args.json else sys.stdout
    found = rehearse(training, wishes, lambda line: print(line, file=stream, flush=True))
    failed = [one for one in found if not one.holds]
    if args.json:
        runs = [one.as_dict() for one in found]
        print(json.dumps({"holds": not failed, "undisturbed": runs[0], "schedules": runs[1:]}))
    elif failed:
        print(f"{len(failed)} of {len(found)} runs did not hold: {', '.join(one.name for one in failed)}")
    else:
        print(f"all holds, in {len(found) - 1} schedules")
    return FAILED if failed else OK
