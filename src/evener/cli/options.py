"""The options that several commands share, each declared once."""

from __future__ import annotations

import argparse
import difflib

from evener import errors
from evener.choices import ON_NAN, PIPELINE_SCHEDULES, TRANSPORTS
from evener.modes import MODES, OPTIONS
from evener.rules import COMPENSATE, STALENESS_LR
from evener.wire.layout import PLACEMENTS

#: Of `--workers`.
WORKERS = "worker tasks; default 1; 2..8: at least 2, at most 8, which come and go"


def add_cluster_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("which task of which cluster").add_argument
    add("--job-name", metavar="ps|worker", help="the job of this task")
    add("--task-index", "--task-id", type=int, metavar="I", help="its index in that job's hosts")
    add("--ps-hosts", "--ps-host", default="", metavar="HOST:PORT,...", help="where the ps tasks listen")
    add("--worker-hosts", "--worker-host", default="", metavar="HOST:PORT,...", help="one entry for each worker")
    add("--ps", type=int, help="under torchrun or Slurm: how many of the tasks are ps tasks")


def add_link_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("links between machines").add_argument
    add("--transport", metavar="|".join(TRANSPORTS), help="between tasks; default auto: shared memory on one host")
    add_key_options(command)


def add_key_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--keys", metavar="DIR", help="encrypt, and let in only tasks whose keys lie there (evener keys new DIR)")
    add("--insecure", action="store_true", default=None, help="no keys: let in whoever reaches the ports")
    add("--heartbeat-timeout", type=float, metavar="S", help="silence after which a peer counts as gone; default 10")


def add_pipeline_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("one model over several processes of this machine").add_argument
    add("--pipeline-stages", type=int, metavar="K", help="cut the model at the recipe's split points; default 1")
    add("--pipeline-schedule", metavar="|".join(PIPELINE_SCHEDULES), help="order of microbatches; default gpipe")
    add("--microbatches", type=int, metavar="M", help="of each batch; default: the fewest, at least K, that divide it")


def truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1", "yes")


def workers(text: str) -> int | str:
    """How many worker tasks: a number, or the fewest and the most as 2..8, which `settings.make` reads."""
    try:
        return int(text)
    except ValueError:
        return text


def sizes(text: str) -> tuple[int, ...]:
    """Of each worker, with commas between them."""
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdecimal() and len(part) < 20 for part in parts):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no list of whole numbers such as 64,64,16")
    return tuple(map(int, parts))


def add_training_options(train: argparse.ArgumentParser) -> None:
    add_mode_options(train)
    _add_length_options(train)
    add_recipe_options(train)
    add_keeping_options(train)
    _add_telling_options(train)
    _add_validation_options(train)
    add_failure_options(train)


def add_mode_options(train: argparse.ArgumentParser) -> None:
    add = train.add_argument_group("when gradients become an update").add_argument
    modes = "; ".join(f"{name}: {mode.about}" for name, mode in MODES.items())
    add("--mode", metavar="|".join(MODES), help=f"default async. {modes}")
    for name, known in OPTIONS.items():
        said = "; ".join(f"{mode}: {text}" for mode, text in known.texts.items())
        flag = "--" + name.replace("_", "-")
        if known.kind is bool:
            add(flag, action="store_true", default=None, help=said)
        else:
            add(flag, type=known.kind, metavar=known.metavar, help=said)
    add("--clip-norm", type=float, metavar="X", help="scale the mean gradient of the whole model down to this 2-norm")
    add("--clip-value", type=float, metavar="X", help="keep each number of the mean gradient between -X and X")
    text = (
        "to try a mode: let workers sleep after each batch, as worker:1=3x,worker:2=80ms,worker:3=lognormal(80ms,0.5)"
    )
    said = "scale steps by their gradient's age d (updates): inverse 1/d; delay_adaptive W/max(W, d) for W workers, "
    said += "the one to try first; polynomial (1+d)^-0.5; default none, or as the recipe says"
    add("--staleness-lr", metavar="|".join(STALENESS_LR), help=said)
    said = "correct late gradients by what has moved since: dc, dc_adaptive (DC-ASGD), gap (gap-aware); each ps task "
    said += "keeps a copy of its parameters for each worker"
    add("--compensate", metavar="|".join(COMPENSATE), help=said)
    add("--slow", metavar="WORKER=HOW,...", help=text)
    add("--placement", metavar="|".join(PLACEMENTS), help="of parameters on several ps tasks; default even")


def add_size_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("a batch size for each worker").add_argument
    text = "of each worker: 64,64,16; each sample counts alike, however they are shared out"
    add("--batch-sizes", type=sizes, metavar="B,B,...", help=text)
    text = "share out workers x --batch-size samples so that all workers end together"
    add("--batch-by-speed", action="store_true", default=None, help=text)
    add("--batch-quantum", type=int, metavar="Q", help="by speed: each worker gets a multiple of it; default 1")
    add("--batch-caps", type=sizes, metavar="B,B,...", help="the largest batch of each worker, for its memory")


def _add_length_options(train: argparse.ArgumentParser) -> None:
    add = train.add_argument_group("how long, over what").add_argument
    add("--train-steps", type=int, metavar="N", help="global steps (updates) of the whole run; default 2000")
    add("--epochs", type=float, metavar="E", help="instead of --train-steps: passes over the training data")
    add("--batch-size", type=int, metavar="B", help="samples of one batch; default 100")
    add_size_options(train)
    add("--batches-per-step", type=int, metavar="N", help="batches of one gradient, which is their mean; default 1")
    add("--seed", type=int, help="of parameters and sample order; default 0")
    text = "let tasks join whose recipe files, or first samples, are others; it is told, not refused"
    add("--allow-difference", action="store_true", default=None, help=text)
    add("--threads", type=int, help="PyTorch threads of each task; default 1")


def add_keeping_options(train: argparse.ArgumentParser) -> None:
    kept = train.add_argument_group("what is kept")
    add = kept.add_argument
    add("--logdir", help="checkpoints, TensorBoard events and logs; an old one is continued; default evener-runs/...")
    text = "in a new logdir: begin with the weights of a logdir, a checkpoint, or a .pt or .safetensors file"
    add("--init-from", metavar="PATH", help=text)
    text = "in an old logdir: whose settings of optimizer and schedule count; default checkpoint"
    add("--hyperparameters", metavar="checkpoint|recipe", help=text)
    add("--save-checkpoint-secs", type=float, metavar="S", help="seconds between checkpoints; default 60")
    add("--save-checkpoint-steps", type=int, metavar="N", help="global steps between checkpoints")
    add("--keep", type=int, metavar="K", help="newest checkpoints kept; default 5")


def _add_telling_options(train: argparse.ArgumentParser) -> None:
    add = train.add_argument_group("what is told").add_argument
    add("--save-summary-secs", type=float, metavar="S", help="seconds between TensorBoard summaries; default 10")
    add("--log-every", type=int, metavar="N", help="local steps between log lines; default 500")


def _add_validation_options(train: argparse.ArgumentParser) -> None:
    add = train.add_argument_group("validation").add_argument
    add("--eval-every", type=int, metavar="N", help="global steps between validations; the last is always done")
    text = "samples validated at once; default --batch-size"
    add("--eval-batch-size", type=int, metavar="B", help=text)


def add_failure_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("when things go wrong").add_argument
    add("--stall-timeout", type=float, metavar="S", help="seconds without an update that end the run; default 300")
    add("--grace", type=float, metavar="S", help="seconds to save and leave after SIGTERM or Ctrl-C; default 10")
    text = "leave as after SIGTERM when this file appears or this URL answers (docs/preemption.md)"
    add("--preemption-notice", metavar="PATH|URL", help=text)
    add("--on-nan", metavar="|".join(ON_NAN), help="what a loss or gradient that is not finite does; default stop")
    text = "a gradient longer than this counts as not finite; see --on-nan"
    add("--refuse-norm", type=float, metavar="X", help=text)
    add("--spike", type=float, metavar="N", help="warn of a loss above N times its running mean")
    text = "in an old logdir: continue from this checkpoint; newer ones are set aside"
    add("--resume-step", type=int, metavar="N", help=text)


def add_recipe_options(command: argparse.ArgumentParser) -> None:
    recipe = command.add_argument_group("options of the recipe")
    add = recipe.add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments", help="any option of the recipe")
    add("--data", help="mnist: digits, mnist or tfrecord; default: what --data-dir has, else digits")
    add("--data-dir", metavar="DIR", help="where the files of mnist or cifar10 lie")
    add("--download", action="store_true", default=None, help="fetch the files that are missing")
    add("--skip-bad-records", action="store_true", default=None, help="tfrecord: leave damaged records out, and count")
    add("--optimizer", help="mnist: sgd (default), momentum, adam (as in TensorFlow) or torch_adam")
    add("--learning-rate", "--lr", type=float, metavar="LR", help="at its highest; default 0.1 for sgd")
    add("--hidden", "--hidden-units", type=int, metavar="H", help="mnist: width of the hidden layer; default 500")


def dashed(word: str) -> str:
    """The old programs wrote --ps_hosts; both are the same here."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def unknown_option(given: str, args: argparse.Namespace) -> errors.ConfigError:
    known = args.options if args.command else ["--version"]
    near = difflib.get_close_matches(given.partition("=")[0], known, n=1, cutoff=0.75)
    see = f"see {' '.join(['evener', args.command or '']).strip()} --help."
    return errors.ConfigError(f"unknown option {given!r}.", fix=f"did you mean {near[0]!r}?" if near else see)
