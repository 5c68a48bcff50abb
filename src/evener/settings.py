"""What a user may choose about a run: one frozen object, checked when it is made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from evener.batch_sizes import check_batch_sizes, mean_of, plan_of
from evener.bounds import check_numbers
from evener.choices import (
    check_cluster,
    check_devices,
    check_elastic,
    check_flight,
    check_length,
    check_notice,
    check_pipeline,
    check_rule_names,
    check_script,
    counts_of,
)
from evener.clipping import check_clipping
from evener.devices.plan import parse
from evener.errors import ConfigError
from evener.modes import OPTIONS, Async, Mode, Sync, Terms, check_mode, elastic_of, mode_of, options_of_mode, terms_of
from evener.policy.enough import Enough
from evener.policy.events import Policy
from evener.policy.filling import Filling
from evener.policy.shares import SharePlan
from evener.slow import check_slow

#: Steps of a run whose end a script decides.
ENDLESS = 2**53 - 1
#: Where nobody says it.
BATCH_SIZE = 100
#: What transports were once called: such a command or file goes on to work.
FORMER_TRANSPORTS = {"zeromq": "tcp"}


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
    mode: Mode = field(default_factory=Async)  # when gradients become an update; see `evener.modes`
    ps: int = 0  # 0: one process, no cluster
    workers: int = 1  # at most
    min_workers: int = 0  # while fewer live, all wait; from this number on whoever lives trains. 0: as the mode says
    towers: int = 0  # without ps: processes that average the gradients of their whole models; 0, 1: one process
    clip_norm: float | None = None  # of the mean gradient, over the whole model; None: as the recipe says
    clip_value: float | None = None  # of each number of it
    staleness_lr: str | None = None  # steps of late gradients, see `evener.rules`; None: as the recipe says
    compensate: str | None = None  # late gradients themselves
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
    batch_size: int = BATCH_SIZE  # of a recipe whose data is a DataLoader: that one's counts
    batch_sizes: tuple[int, ...] = ()  # of each worker, in samples, instead of batch_size; empty: all have the same
    batch_by_speed: bool = False  # workers x batch_size samples are shared out so that all end together
    batch_quantum: int = 1  # by speed: each worker gets a multiple of it
    batch_caps: tuple[int, ...] = ()  # the largest batch of each worker; empty: no bounds
    batches_per_step: int | None = None  # batches of one gradient, which is their mean; None: as the recipe says
    eval_batch_size: int | None = None  # samples validated at once; None: as many as are trained on
    seed: int = 0
    typed_recipes: bool = False  # call only what is marked or typed as a recipe: somebody else named it
    slow: str = ""  # workers to be slower than they are, to try a mode: "worker:1=3x,worker:2=80ms"
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
    preemption_notice: str = ""  # a path or URL that says when this machine goes away; see `control.notice`
    on_nan: str = "stop"  # what a loss or gradient that is not finite does: stop, skip, rollback
    refuse_norm: float | None = None  # a gradient longer than this is treated as one that is not finite
    spike: float | None = None  # warn of a loss so many times its running mean; None: never
    resume_step: int | None = None  # continue from this checkpoint, not from the newest
    stall_timeout: float = 300.0
    heartbeat_timeout: float = 10.0  # between hosts: after so much silence a peer counts as gone

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "batch_caps"):
            if isinstance(getattr(self, name), list):  # as it is written in Python, and as it travels
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_numbers(self)
        mode = mode_of(self.mode, {})
        elastic = self.min_workers and not self.by_samples  # who is gone leaves its samples of a round to the others
        object.__setattr__(self, "mode", elastic_of(mode) if elastic else mode)
        object.__setattr__(self, "transport", FORMER_TRANSPORTS.get(self.transport, self.transport))
        check_elastic(self)
        check_cluster(self)
        check_mode(self.mode, ps=self.ps, workers=self.workers)
        check_pipeline(self)
        check_devices(self)
        check_length(self)
        check_notice(self.preemption_notice)
        check_clipping(self.clip_norm, self.clip_value)
        check_script(self)
        check_rule_names(self)
        check_flight(self)
        check_batch_sizes(self, BATCH_SIZE)
        if self.batch_sizes:
            object.__setattr__(self, "batch_size", mean_of(self.batch_sizes))
        check_slow(self.slow, self.processes)

    @property
    def aggregate(self) -> int:
        """Gradients averaged in one update; where that differs from update to update, as many as there are workers."""
        if self.ps == 0:
            return max(1, self.towers)
        return self.terms.gradients or self.workers

    def start(self, version: int) -> Policy:
        """The policy of a run with ps tasks that goes on from this version."""
        least = max(1, self.min_workers)
        if self.by_samples and isinstance(self.mode, Sync):
            policy: Policy = Filling(self.plan.total, version=version)
        else:
            policy = self.mode.start(version, self.workers, ending=bool(self.script), least=least)
        return Enough(policy, least) if least > 1 else policy

    @property
    def terms(self) -> Terms:
        """What the mode asks of the workers."""
        return terms_of(self.mode, self.workers, self.min_workers, by_samples=self.by_samples)

    @property
    def ahead(self) -> bool:
        """Whether workers may have batches in hand that they do not compute yet."""
        return bool(self.ps) and not self.by_samples and self.terms.ahead

    @property
    def late(self) -> bool:
        """Whether gradients may be applied to newer parameters than they were computed on: rules are for these."""
        return bool(self.ps) and self.terms.late

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
            return self.mode.name
        return "pipeline" if self.pipeline_stages > 1 else "towers" if self.towers > 1 else "single"

    def steps(self, samples: int) -> int:
        """Global steps of the whole run, given the number of training samples."""
        if self.script and self.train_steps is None:
            return ENDLESS
        if self.epochs is not None:
            if self.ends_by_samples:  # an update has at least one gradient, which may be of a single sample
                return ENDLESS if self.by_samples else self.epochs_in_gradients(samples)
            steps = self.epochs * samples / self.per_step
            return max(1, math.ceil(round(steps, 6)))  # 2.2 epochs of 1500 in hundreds: 33, not 33.000000000000004
        return 2000 if self.train_steps is None else self.train_steps

    @property
    def ends_by_samples(self) -> bool:
        """Whether no number of updates says when the epochs are over."""
        if self.epochs is None or not self.ps:
            return False
        return self.terms.gradients is None or (self.by_samples and not isinstance(self.mode, Sync))

    def epochs_in_gradients(self, samples: int) -> int:
        """Gradients of the whole run."""
        assert self.epochs is not None
        return max(1, math.ceil(round(self.epochs * samples / (self.batch_size * self.batches), 6)))

    def steps_per_epoch(self, samples: int) -> Fraction:
        """Updates in one pass over the data, exactly."""
        return Fraction(samples, self.per_step)

    @property
    def batches(self) -> int:
        """Of one gradient."""
        return self.batches_per_step or 1

    @property
    def by_samples(self) -> bool:
        """Whether batches are stretches of the stream of samples, of a size for each worker."""
        return bool(self.batch_sizes) or self.batch_by_speed

    @property
    def plan(self) -> SharePlan:
        """How samples are shared out, where they are."""
        return plan_of(self)

    @property
    def mean_batch(self) -> Fraction:
        """Samples of a batch, of a mean worker."""
        return Fraction(self.plan.total, len(self.plan.sizes)) if self.by_samples else Fraction(self.batch_size)

    @property
    def per_step(self) -> Fraction:
        """Samples of one update; in the mean, where workers have batches of their own and each is an update."""
        if self.by_samples and (isinstance(self.mode, Sync) or not self.ps):
            return Fraction(self.plan.total)
        return self.mean_batch * self.batches_of_update

    @property
    def batches_of_update(self) -> int:
        """Of all its gradients."""
        return self.batches * self.aggregate


def make(options: Mapping[str, Any]) -> Settings:
    """Settings from names and values. Raises ConfigError for an unknown name, with the nearest known one.

    Options of a mode stand beside its name, as on a command line.
    """
    known = [*(entry.name for entry in fields(Settings)), *OPTIONS]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are: {', '.join(known)}."
            raise ConfigError(f"unknown option {name!r}.", fix=hint)
    if isinstance(options.get("place"), str):
        options = {**options, "place": parse(options["place"])}
    own = {name: value for name, value in options.items() if name not in OPTIONS}
    if isinstance(own.get("workers"), str) and ".." in own["workers"]:
        own |= counts_of(own["workers"])
    said = {name: options[name] for name in OPTIONS if name in options}
    own["mode"] = mode_of(options.get("mode", Async.name), said, ps=bool(options.get("ps")))
    return Settings(**own)


def as_options(settings: Settings) -> dict[str, Any]:
    """The names and values that `make` makes these settings of, in another process too."""
    own = {entry.name: getattr(settings, entry.name) for entry in fields(Settings)}
    return {**own, "mode": settings.mode.name, **options_of_mode(settings.mode)}


def check_gpus(settings: Settings, local_workers: int) -> None:
    """Refuse fewer GPUs than workers of this machine, unless they may share. Raises ConfigError."""
    gpus = settings.num_gpus
    if 0 < gpus < local_workers and not settings.share_gpus:
        raise ConfigError(
            f"{local_workers} workers of this machine have {gpus} GPU{'s' if gpus > 1 else ''}.",
            why="worker i takes GPU i mod num_gpus, so some would share one.",
            fix=f"start at most {gpus}, use --num-gpus {local_workers}, or allow it with --share-gpus.",
        )
