"""The command line: declares, calls, prints; no logic."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import traceback
from typing import Any

from evener import errors
from evener.launch.environment import Flags
from evener.settings import MODES, TRANSPORTS, Settings
from evener.wire.layout import PLACEMENTS

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

#: Flags that are options of the shipped recipes: --hidden-units 100 is --set hidden=100.
RECIPE_FLAGS = ("data", "data_dir", "download", "optimizer", "learning_rate", "hidden")


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
    add_task(commands)
    add_eval(commands)
    add_explain(commands)
    add_keys(commands)
    return top


def add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train a recipe: in one process, or with ps and worker tasks")
    train.add_argument("recipe", help='"mnist", "package.module:recipe" or "path/to/file.py:recipe"')
    cluster = train.add_argument_group("who trains")
    add = cluster.add_argument
    add("--ps", type=int, help="parameter server tasks; 0 (default): one process, no cluster")
    add("--workers", "--num-workers", type=int, help="worker tasks; default 1")
    add("--transport", metavar="|".join(TRANSPORTS), help="between tasks; default auto: shared memory on one host")
    add("--ps-hosts", metavar="HOST:PORT,...", help="fixed addresses of the ps tasks (ZeroMQ)")
    add_training_options(train)
    add = train.add_argument
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")
    add("--quiet", action="store_true", help="show no progress")
    add("--max-restarts", type=int, metavar="N", help="of each worker that was killed; default 3")
    train.set_defaults(run=run_train, options=train.options())


def add_task(commands: Any) -> None:
    task = commands.add_parser("task", help="be one task of a cluster: one such command per machine")
    task.add_argument("recipe", help="as for train")
    add_cluster_options(task)
    add_training_options(task)
    add = task.add_argument
    add("--sync-replicas", type=truth, nargs="?", const=True, default=False, help="the same as --mode sync")
    add("--download-only", type=truth, nargs="?", const=True, default=False, help="load the data, train nothing")
    add("--num-gpus", type=int, default=0, help="accepted for the old command lines; must be 0")
    task.set_defaults(run=run_task, options=task.options())


def add_explain(commands: Any) -> None:
    command = commands.add_parser("explain", help="which cluster this process would be in, as which task, who said so")
    add_cluster_options(command)
    command.set_defaults(run=run_explain, options=command.options())


def add_cluster_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("which task of which cluster").add_argument
    add("--job-name", metavar="ps|worker", help="the job of this task")
    add("--task-index", "--task-id", type=int, metavar="I", help="its index in that job's hosts")
    add("--ps-hosts", "--ps-host", default="", metavar="HOST:PORT,...", help="where the ps tasks listen")
    add("--worker-hosts", "--worker-host", default="", metavar="HOST:PORT,...", help="one entry for each worker")
    add("--ps", type=int, help="under torchrun or Slurm: how many of the tasks are ps tasks")


def truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1", "yes")


def add_training_options(train: argparse.ArgumentParser) -> None:
    add = train.add_argument_group("when gradients become an update").add_argument
    add("--mode", metavar="|".join(MODES), help="when gradients become an update; default async")
    add(
        "--replicas-to-aggregate",
        type=int,
        metavar="R",
        help="sync: gradients averaged in one update; default: workers",
    )
    add("--accumulate", action="store_true", default=None, help="sync: let a worker give several of the R gradients")
    add("--elastic", action="store_true", default=None, help="sync: with fewer live workers, average fewer gradients")
    add("--staleness", type=int, metavar="S", help="bounded: local steps ahead of the slowest worker; default 4")
    add("--placement", metavar="|".join(PLACEMENTS), help="of parameters on several ps tasks; default even")
    length = train.add_argument_group("how long, over what")
    add = length.add_argument
    add("--train-steps", type=int, metavar="N", help="global steps (updates) of the whole run; default 2000")
    add("--epochs", type=float, metavar="E", help="instead of --train-steps: passes over the training data")
    add("--batch-size", type=int, metavar="B", help="samples of one gradient; default 100")
    add("--seed", type=int, help="of parameters and sample order; default 0")
    add("--threads", type=int, help="PyTorch threads of each task; default 1")
    add_recipe_options(train)
    kept = train.add_argument_group("what is kept and told")
    add = kept.add_argument
    add("--logdir", help="checkpoints, TensorBoard events and logs; an old one is continued; default evener-runs/...")
    add("--save-checkpoint-secs", type=float, metavar="S", help="seconds between checkpoints; default 60")
    add("--save-checkpoint-steps", type=int, metavar="N", help="global steps between checkpoints")
    add("--keep", type=int, metavar="K", help="newest checkpoints kept; default 5")
    add("--save-summary-secs", type=float, metavar="S", help="seconds between TensorBoard summaries; default 10")
    add("--log-every", type=int, metavar="N", help="local steps between log lines; default 500")
    add("--eval-every", type=int, metavar="N", help="global steps between validations; the last is always done")
    add("--stall-timeout", type=float, metavar="S", help="seconds without an update that end the run; default 300")


def add_recipe_options(command: argparse.ArgumentParser) -> None:
    recipe = command.add_argument_group("options of the recipe")
    add = recipe.add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments", help="any option of the recipe")
    add("--data", help="mnist: digits (default, ships with scikit-learn) or mnist")
    add("--data-dir", metavar="DIR", help="mnist: where the IDX files lie")
    add("--download", action="store_true", default=None, help="mnist: fetch the files that are missing")
    add("--optimizer", help="mnist: sgd (default), momentum or adam")
    add("--learning-rate", "--lr", type=float, metavar="LR", help="mnist: at step 0; default 0.1 for sgd")
    add("--hidden", "--hidden-units", type=int, metavar="H", help="mnist: width of the hidden layer; default 500")


def add_eval(commands: Any) -> None:
    command = commands.add_parser("eval", help="validate a checkpoint")
    command.add_argument("recipe", help="as for train")
    command.add_argument("--checkpoint", required=True, metavar="DIR", help="a checkpoint, or a logdir: its newest")
    add_recipe_options(command)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run_eval, options=command.options())


def add_keys(commands: Any) -> None:
    command = commands.add_parser("keys", help="make the keys of a cluster of several machines")
    actions = command.add_subparsers(dest="action", metavar="new", required=True)
    new = actions.add_parser("new", help="one pair for each task; pairs that exist are never replaced")
    new.add_argument("directory", metavar="DIR", help="where to write them")
    new.add_argument("--ps", type=int, default=1, metavar="P", help="parameter server tasks; default 1")
    new.add_argument("--workers", type=int, default=2, metavar="W", help="worker tasks; default 2")
    new.set_defaults(run=run_keys_new, options=new.options())


def recipe_options(args: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(args, name) for name in RECIPE_FLAGS if getattr(args, name) is not None}
    for assignment in args.assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise errors.ConfigError(f"--set {assignment} assigns nothing.", fix="write --set NAME=VALUE.")
        options[name.replace("-", "_")] = value
    return options


def settings_options(args: argparse.Namespace) -> dict[str, Any]:
    known = Settings.__dataclass_fields__
    options = {name: value for name, value in vars(args).items() if name in known and value is not None}
    del options["recipe"]
    return {**options, "recipe_options": recipe_options(args)}


def run_train(args: argparse.Namespace) -> int:
    from evener.api import run

    options = settings_options(args)
    if "ps_hosts" in options:
        options["ps_hosts"] = tuple(host.strip() for host in options["ps_hosts"].split(","))
    result = run(args.recipe, stream=sys.stderr if args.json else sys.stdout, quiet=args.quiet, **options)
    if args.json:
        print(json.dumps(result.as_dict()))
    else:
        from evener.launch.view import installed, summary

        print(summary(result, installed))
    return OK


def run_task(args: argparse.Namespace) -> int:
    from evener.api import be_task

    if args.num_gpus:
        raise errors.ConfigError(f"--num-gpus {args.num_gpus}: evener 0.1 trains on processors only.", fix="use 0.")
    if args.sync_replicas:
        args.mode = "sync"
    options = settings_options(args)
    options.pop("ps_hosts", None)
    options.pop("ps", None)
    be_task(args.recipe, flags(args), download_only=args.download_only, stream=sys.stdout, **options)
    return OK


def run_explain(args: argparse.Namespace) -> int:
    from evener.api import explain_task

    print(explain_task(flags(args)))
    return OK


def flags(args: argparse.Namespace) -> Flags:
    return Flags(
        job_name=args.job_name, task_index=args.task_index, ps_hosts=args.ps_hosts, worker_hosts=args.worker_hosts,
        ps=args.ps,
    )  # fmt: skip


def run_eval(args: argparse.Namespace) -> int:
    from evener.api import evaluate

    values = evaluate(args.recipe, args.checkpoint, recipe_options=recipe_options(args))
    if args.json:
        print(json.dumps(values))
    else:
        for name, value in values.items():
            print(f"{name:28} {value:.4f}" if isinstance(value, float) else f"{name:28} {value}")
    return OK


def run_keys_new(args: argparse.Namespace) -> int:
    from evener.transport import keys

    keys.new(args.directory, names := keys.names(args.ps, args.workers))
    print(f"{args.directory} now holds the keys of {', '.join(names)}.")
    print("Give each machine all *.public files and the *.secret files of its own tasks, and no other *.secret.")
    return OK


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code says how it ended: 0 finished, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        return command(argv)
    except KeyboardInterrupt as interrupt:
        return say(f"\n{interrupt or 'interrupted'}", INTERRUPTED)
    except errors.RunFailed as error:
        return say(error.block, USAGE if error.kind == "ConfigError" else FAILED)
    except errors.SessionError as error:  # a hook of the user failed: its own traceback stands last
        cause = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
        return say(f"evener: {error}\n\n{cause}".rstrip(), FAILED)
    except errors.EvenerError as error:
        return say(f"evener: {error}", USAGE if isinstance(error, errors.ConfigError) else FAILED)
    except Exception:
        return say(traceback.format_exc(), FAILED)


def command(argv: list[str] | None) -> int:
    args, unknown = parser().parse_known_args([dashed(word) for word in (sys.argv[1:] if argv is None else argv)])
    if unknown:
        raise unknown_option(unknown[0], args)
    if args.version:
        from importlib.metadata import version

        print(f"evener {version('evener')}")
        return OK
    if args.command is None:
        parser().print_help()
        return USAGE
    return int(args.run(args))


def dashed(word: str) -> str:
    """The old programs wrote --ps_hosts; both are the same here."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def unknown_option(given: str, args: argparse.Namespace) -> errors.ConfigError:
    known = args.options if args.command else ["--version"]
    near = difflib.get_close_matches(given.partition("=")[0], known, n=1, cutoff=0.75)
    see = f"see {' '.join(['evener', args.command or '']).strip()} --help."
    return errors.ConfigError(f"unknown option {given!r}.", fix=f"did you mean {near[0]!r}?" if near else see)


def say(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
