"""What a user may choose about a run: one frozen object, checked when it is made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from evener.bounds import check_numbers
from evener.clipping import check_clipping
from evener.devices.plan import canonical, parse
from evener.errors import ConfigError
from evener.modes import STALENESS, check_mode
from evener.wire.layout import PLACEMENTS

#: Steps of a run whose end a script decides.
ENDLESS = 2**53 - 1
TRANSPORTS = ("auto", "shared", "tcp")
#: What transports were once called: such a command or file goes on to work.
FORMER_TRANSPORTS = {"zeromq": "tcp"}
PIPELINE_SCHEDULES = ("gpipe", "1f1b")
ON_NAN = ("stop", "skip", "rollback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of one run. Steps are global steps (updates applied); times are seconds.

    Raises:
        ConfigError: a value that cannot work, alone or beside the others.
    """

    recipe: str = ""  # how another process finds the recipe: "mnist", "module:attr", "file.py:attr"
    recipe_options: Mapping[str, Any] = field(default_factory=dict)
    script: str = ""  # instead of a recipe: a program with a loop of its own, which calls `evener.join`
    script_args: tuple[str, ...] = ()

    # who trains
    mode: str = "async"
    ps: int = 0  # 0: one process, no cluster
    workers: int = 1
    towers: int = 0  # without ps: processes that average the gradients of their whole models; 0, 1: one process
    replicas_to_aggregate: int | None = None  # sync: gradients averaged in one update; None: as many as workers
    accumulate: bool = False  # sync: a worker may give several gradients to one update
    elastic: bool = False  # sync: with fewer live workers, average fewer gradients
    staleness: int | None = None  # bounded: local steps that a worker may be ahead of the slowest; None: 4
    clip_norm: float | None = None  # of the mean gradient, over the whole model; None: as the recipe says
    clip_value: float | None = None  # of each number of it
    placement: str = "even"
    transport: str = "auto"
    ps_hosts: tuple[str, ...] = ()  # fixed addresses, "127.0.0.1:2222"; empty: found at start
    keys: str = ""  # directory of the cluster's keys; empty: links are neither encrypted nor authenticated
    insecure: bool = False  # listen beyond this machine without keys

    # one model over several processes
    pipeline_stages: int = 1  # 1: no pipeline
    pipeline_schedule: str = "gpipe"
    microbatches: int | None = None  # of a batch; None: the fewest, at least as many as stages, that divide it

    # on which devices
    place: Mapping[str, str] = field(default_factory=dict)  # module -> device; "" is the whole model
    soft_placement: bool = True  # what a device cannot take goes to the CPU; False: it is an error
    log_device_placement: bool = False
    num_gpus: int = 0  # GPUs of each machine for its workers: worker i takes GPU i mod num_gpus; 0: the CPU
    share_gpus: bool = False  # there may be fewer GPUs than workers
    visible_devices: str | None = None  # "0,2": the only GPUs there are for the workers, counted from 0
    gpu_memory_fraction: float | None = None  # of each GPU, for one worker
    allow_growth: bool = False  # memory segments of a GPU grow in place

    # how long, over what
    train_steps: int | None = None  # None with epochs None: 2000
    epochs: float | None = None
    batch_size: int = 100
    eval_batch_size: int | None = None  # samples validated at once; None: as many as are trained on
    seed: int = 0
    typed_recipes: bool = False  # call only what is marked or typed as a recipe: somebody else named it
    allow_difference: bool = False  # tasks may run other code, or see other data
    threads: int = 1  # PyTorch threads of each task

    # where parameters begin, in a logdir without a checkpoint
    init_from: str = ""  # a checkpoint, a logdir, or a file of weights; empty: as the recipe makes them

    # what is kept and told
    logdir: str = ""
    save_checkpoint_secs: float | None = 60.0
    save_checkpoint_steps: int | None = None
    keep: int = 5
    save_summary_secs: float = 10.0
    log_every: int = 500
    eval_every: int | None = None

    # when a logdir is continued
    hyperparameters: str = "checkpoint"  # whose count where they differ: the checkpoint's or the recipe's

    # when things go wrong
    max_restarts: int = 3  # of one task in a row: progress gives them back
    grace: float = 10.0  # for a task that is told to leave, and for all when the run is cut short
    on_nan: str = "stop"  # what a loss or gradient that is not finite does: stop, skip, rollback
    refuse_norm: float | None = None  # a gradient longer than this is treated as one that is not finite
    spike: float | None = None  # warn of a loss so many times its running mean; None: never
    resume_step: int | None = None  # continue from this checkpoint, not from the newest
    stall_timeout: float = 300.0
    heartbeat_timeout: float = 10.0  # between hosts: after so much silence a peer counts as gone

    def __post_init__(self) -> None:
        check_numbers(self)
        object.__setattr__(self, "transport", FORMER_TRANSPORTS.get(self.transport, self.transport))
        _check_cluster(self)
        check_mode(self)
        _check_pipeline(self)
        _check_devices(self)
        _check_length(self)
        check_clipping(self.clip_norm, self.clip_value)
        _check_script(self)

    @property
    def aggregate(self) -> int:
        """Gradients averaged in one update."""
        if self.ps == 0:
            return max(1, self.towers)
        if self.mode != "sync":
            return 1
        return self.replicas_to_aggregate or self.workers

    @property
    def ahead(self) -> int:
        """Local steps that a worker may be ahead of the slowest, in mode bounded."""
        return STALENESS if self.staleness is None else self.staleness

    @property
    def processes(self) -> int:
        """Of the job "worker"."""
        return {"pipeline": self.pipeline_stages, "towers": self.towers}.get(self.way, self.workers)

    @property
    def chunks(self) -> int:
        """Microbatches of a batch in a pipeline."""
        fewest = (n for n in range(self.pipeline_stages, self.batch_size + 1) if self.batch_size % n == 0)
        return self.microbatches or next(fewest, self.batch_size)

    @property
    def way(self) -> str:
        """How gradients become updates: a mode of ps tasks, or "single", "towers" or "pipeline" without them."""
        if self.ps:
            return self.mode
        return "pipeline" if self.pipeline_stages > 1 else "towers" if self.towers > 1 else "single"

    def steps(self, samples: int) -> int:
        """Global steps of the whole run, given the number of training samples."""
        if self.script and self.train_steps is None:
            return ENDLESS
        if self.epochs is not None:
            steps = self.epochs * samples / (self.batch_size * self.aggregate)
            return max(
                1, math.ceil(round(steps, 6))
            )  # 2.2 epochs of 1500 in hundreds are 33 steps, not 33.000000000000004
        return 2000 if self.train_steps is None else self.train_steps

    def steps_per_epoch(self, samples: int) -> Fraction:
        """Updates in one pass over the data, exactly."""
        return Fraction(samples, self.batch_size * self.aggregate)


def make(options: Mapping[str, Any]) -> Settings:
    """Settings from names and values. Raises ConfigError for an unknown name, with the nearest known one."""
    known = [entry.name for entry in fields(Settings)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are: {', '.join(known)}."
            raise ConfigError(f"unknown option {name!r}.", fix=hint)
    if isinstance(options.get("place"), str):
        options = {**options, "place": parse(options["place"])}
    return Settings(**options)


def _check_cluster(settings: Settings) -> None:
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


def _check_pipeline(settings: Settings) -> None:
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


def _check_devices(settings: Settings) -> None:
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


def _check_script(settings: Settings) -> None:
    """A program with a loop of its own decides itself what a recipe's options decide."""
    if not settings.script:
        return
    loops = {"epochs": settings.epochs, "eval_every": settings.eval_every}
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


def check_gpus(settings: Settings, local_workers: int) -> None:
    """Refuse fewer GPUs than workers of this machine, unless they may share. Raises ConfigError."""
    gpus = settings.num_gpus
    if 0 < gpus < local_workers and not settings.share_gpus:
        raise ConfigError(
            f"{local_workers} workers of this machine have {gpus} GPU{'s' if gpus > 1 else ''}.",
            why="worker i takes GPU i mod num_gpus, so some would share one.",
            fix=f"start at most {gpus}, use --num-gpus {local_workers}, or allow it with --share-gpus.",
        )


def _check_length(settings: Settings) -> None:
    if settings.train_steps is not None and settings.epochs is not None:
        raise ConfigError(
            f"both train_steps={settings.train_steps} and epochs={settings.epochs} say how long to train.",
            fix="give one of them.",
        )
