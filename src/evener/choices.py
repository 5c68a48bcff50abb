"""What may not be chosen together for a run, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from evener.control.notice import is_url
from evener.devices.plan import canonical
from evener.errors import ConfigError
from evener.rules import COMPENSATE, STALENESS_LR
from evener.wire.layout import PLACEMENTS

if TYPE_CHECKING:
    from evener.settings import Settings

TRANSPORTS = ("auto", "shared", "tcp")
PIPELINE_SCHEDULES = ("gpipe", "1f1b")
ON_NAN = ("stop", "skip", "rollback")


def counts_of(workers: str) -> dict[str, int]:
    """How many workers an elastic run has, as it is written: "2..8" are at least 2 and at most 8.

    Raises:
        ConfigError: it is no such range.

    >>> counts_of("2..8")
    {'min_workers': 2, 'workers': 8}
    """
    fix = "write --workers 2..8: at least 2, at most 8."
    low, _, high = (part.strip() for part in workers.partition(".."))
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in (low, high)):
        raise ConfigError(f"workers={workers[:80]!r} cannot work.", why="it is no number and no range.", fix=fix)
    least, most = int(low), int(high)
    if not 1 <= least <= most:
        why = "without a worker nothing is trained." if least < 1 else "the first number is the lower one."
        raise ConfigError(f"workers={workers!r} cannot work.", why=why, fix=fix)
    return {"min_workers": least, "workers": most}


def check_elastic(settings: Settings) -> None:
    """At least so many workers are waited for: there must be so many, and ps tasks that wait."""
    least, most = settings.min_workers, settings.workers
    if least > most:
        raise ConfigError(
            f"min_workers={least} of {most} workers cannot work.", why="so many are never here.",
            fix=f"use --workers {most}..{least}.",
        )  # fmt: skip
    if least and not settings.ps:
        raise ConfigError(
            f"workers={least}..{most} cannot come and go without ps tasks.",
            why="all towers hold the parameters themselves, and one process is alone.",
            fix=f"add --ps 1, or use --towers {most}, which all start and end together.",
        )


def check_cluster(settings: Settings) -> None:
    if settings.transport not in TRANSPORTS:
        raise ConfigError(f"unknown transport {settings.transport!r}.", fix=f"use one of: {', '.join(TRANSPORTS)}.")
    if settings.placement not in PLACEMENTS:
        raise ConfigError(f"unknown placement {settings.placement!r}.", fix=f"use one of: {', '.join(PLACEMENTS)}.")
    if settings.on_nan not in ON_NAN:
        raise ConfigError(f"on_nan={settings.on_nan!r} cannot work.", fix=f"use one of: {', '.join(ON_NAN)}.")
    if settings.on_nan != "stop" and settings.pipeline_stages > 1:
        raise ConfigError(f"on_nan={settings.on_nan} does not go with a pipeline so far.", fix="leave --on-nan out.")
    if settings.on_nan == "rollback" and settings.towers > 1:
        raise ConfigError(
            "on_nan=rollback does not go with towers.", why="each tower holds all parameters, one alone saves them.",
            fix="use --on-nan skip, or ps tasks.",
        )  # fmt: skip
    if settings.hyperparameters not in ("checkpoint", "recipe"):
        raise ConfigError(
            f"hyperparameters={settings.hyperparameters!r} cannot work.", fix="use checkpoint (default) or recipe."
        )
    if settings.ps and settings.towers:
        raise ConfigError(
            f"towers={settings.towers} and ps={settings.ps} are both given.",
            why="towers hold the parameters themselves.",
            fix="use --towers N alone, or --ps P --workers W.",
        )
    if settings.ps == 0 and settings.workers not in (1, settings.towers):
        raise ConfigError(
            f"{settings.workers} workers have nobody to hold their parameters.",
            why="with ps=0 one process trains alone.",
            fix=f"add --ps 1, or use --towers {settings.workers}: each holds them all and averages with the others.",
        )
    if settings.keys and settings.insecure:
        raise ConfigError("both keys and insecure are given.", fix="give one of them.")
    if settings.ps_hosts and len(settings.ps_hosts) != settings.ps:
        raise ConfigError(
            f"{len(settings.ps_hosts)} ps hosts are named, but ps={settings.ps}.", fix="name one host:port a ps task."
        )


def check_pipeline(settings: Settings) -> None:
    if settings.pipeline_schedule not in PIPELINE_SCHEDULES:
        raise ConfigError(
            f"unknown pipeline_schedule {settings.pipeline_schedule!r}.",
            fix=f"use one of: {', '.join(PIPELINE_SCHEDULES)}.",
        )
    if settings.pipeline_stages == 1:
        return
    if settings.ps or settings.workers > 1 or settings.towers > 1:
        others = f"{settings.ps} ps, {settings.workers} workers, {settings.towers} towers"
        raise ConfigError(
            f"{settings.pipeline_stages} pipeline stages do not go with {others}.",
            why="the stages own the parameters of their parts themselves.",
            fix="leave --ps, --workers and --towers out; with ps tasks, spread a worker's model by --place.",
        )
    if settings.batches > 1:
        raise ConfigError(
            f"batches_per_step={settings.batches} does not go with a pipeline.",
            why="its gradients are those of one batch, cut into microbatches.",
            fix="leave it out, and say --batch-size and --microbatches.",
        )
    if settings.place or settings.num_gpus:
        raise ConfigError(
            "a pipeline over processes computes on the CPU so far.",
            fix="leave --place and --num-gpus out; or let one process spread the model over GPUs by --place.",
        )
    if settings.batch_size % settings.chunks or settings.chunks < settings.pipeline_stages:
        raise ConfigError(
            f"microbatches={settings.chunks} of a batch of {settings.batch_size} in {settings.pipeline_stages} stages.",
            why="microbatches are of one size, and at least as many as stages, or some stage never works.",
            fix=f"choose a divisor of {settings.batch_size} that is >= {settings.pipeline_stages}.",
        )


def check_devices(settings: Settings) -> None:
    if not isinstance(settings.place, Mapping):
        raise ConfigError(f"place={settings.place!r} is no mapping.", fix='write {"features": "cuda:0"}.')
    for name, device in settings.place.items():
        if not isinstance(name, str):
            raise ConfigError(f"place names a module {name!r}.", fix='write {"features": "cuda:0"}.')
        canonical(device)
    fraction = settings.gpu_memory_fraction
    if fraction is not None and (
        isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1
    ):
        raise ConfigError(f"gpu_memory_fraction={fraction!r} cannot work.", fix="use a number > 0 and <= 1.")
    visible = settings.visible_devices
    if visible is not None and not isinstance(visible, str):
        raise ConfigError(f"visible_devices={visible!r} cannot work.", fix='write "0,2", or "" for none.')


def check_script(settings: Settings) -> None:
    """A program with a loop of its own decides itself what a recipe's options decide."""
    if not settings.script:
        return
    loops = {
        "epochs": settings.epochs, "eval_every": settings.eval_every, "batches_per_step": settings.batches_per_step,
    }  # fmt: skip
    if wrong := [name for name, value in loops.items() if value is not None]:
        option = "--" + wrong[0].replace("_", "-")
        raise ConfigError(
            f"{option} does not go with a program that has a loop of its own.",
            why="it decides that itself.",
            fix=f"leave {option} out; give the program its own arguments, after its name.",
        )
    if settings.pipeline_stages > 1:
        raise ConfigError(
            "a pipeline cannot run a program with a loop of its own.",
            why="each stage computes a part of the model.",
            fix="use --towers or --ps, or write a recipe.",
        )
    guards = {"on_nan": settings.on_nan != "stop", "refuse_norm": settings.refuse_norm, "spike": settings.spike}
    if not settings.ps and (wrong := [name for name, value in guards.items() if value]):
        option = "--" + wrong[0].replace("_", "-")
        raise ConfigError(
            f"{option} needs ps tasks, where a program has a loop of its own.",
            why="without them the program's own optimizer takes each step by itself.",
            fix="add --ps 1, or look at the gradients in your loop.",
        )


def check_rule_names(settings: Settings) -> None:
    """What becomes of late gradients. A step scale where none is late changes nothing, and is told when it runs."""
    for name, known in (("staleness_lr", STALENESS_LR), ("compensate", COMPENSATE)):
        value, option = getattr(settings, name), "--" + name.replace("_", "-")
        if value is not None and (not isinstance(value, str) or value not in known):
            raise ConfigError(
                f"{name}={value!r} cannot work.", why=f"{option} names an update rule: {', '.join(known)}.",
                fix="use one of these; rules of your own stand in the recipe, or in evener.join(rules=[...]).",
            )  # fmt: skip
    if settings.compensate not in (None, "none") and not settings.late:
        where = f"in mode {settings.mode.name}" if settings.ps else "without ps tasks"
        raise ConfigError(
            f"compensate={settings.compensate} means nothing {where}.",
            why="no gradient is late there, and a copy of the parameters for each worker would be kept for nothing.",
            fix="use --ps P --workers W --mode async, bounded, ringmaster, softsync or quorum, "
            "or leave --compensate out.",
        )


def check_notice(place: object) -> None:
    """Where it is told that this machine goes away."""
    if not isinstance(place, str) or ("://" in place and not is_url(place)):
        raise ConfigError(
            f"preemption_notice={place!r} cannot work.", why="it is a file that appears, or a URL that answers.",
            fix="write a path, or http://169.254.169.254/latest/meta-data/spot/instance-action as on AWS.",
        )  # fmt: skip


def check_flight(settings: Settings) -> None:
    """A worker that computes ahead of its answers: not yet everywhere."""
    if settings.ps == 0 or settings.terms.in_flight == 1:
        return
    said = f"in_flight={settings.terms.in_flight}"
    if settings.by_samples:
        raise ConfigError(
            f"{said} does not go with a batch size for each worker so far.",
            why="the next samples are shared out when the last gradient of a worker has come.",
            fix="leave --in-flight out, or use --batch-size.",
        )
    if settings.compensate not in (None, "none"):
        raise compensated_in_flight(f"compensate={settings.compensate}")


def compensated_in_flight(rule: str) -> ConfigError:
    return ConfigError(
        f"{rule} does not go with in_flight=2 so far.",
        why="a ps task keeps what it sent a worker last, and the gradient may be of what it sent before that.",
        fix="leave --in-flight out, or use --staleness-lr, which asks for the age alone.",
    )


def check_length(settings: Settings) -> None:
    if settings.train_steps is not None and settings.epochs is not None:
        raise ConfigError(
            f"both train_steps={settings.train_steps} and epochs={settings.epochs} say how long to train.",
            fix="give one of them.",
        )
