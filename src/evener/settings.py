"""What a user may choose about a run: one frozen object, checked when it is made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from evener.errors import ConfigError
from evener.wire.layout import PLACEMENTS

MODES = ("async", "sync", "bounded")
TRANSPORTS = ("auto", "shared", "zeromq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of one run. Steps are global steps (updates applied); times are seconds.

    Raises:
        ConfigError: a value that cannot work, alone or beside the others.
    """

    recipe: str = ""  # how another process finds the recipe: "mnist", "module:attr", "file.py:attr"
    recipe_options: Mapping[str, Any] = field(default_factory=dict)

    # who trains
    mode: str = "async"
    ps: int = 0  # 0: one process, no cluster
    workers: int = 1
    replicas_to_aggregate: int | None = None  # sync: gradients averaged in one update; None: as many as workers
    accumulate: bool = False  # sync: a worker may give several gradients to one update
    elastic: bool = False  # sync: with fewer live workers, average fewer gradients
    staleness: int = 4  # bounded: local steps that a worker may be ahead of the slowest
    placement: str = "even"
    transport: str = "auto"
    ps_hosts: tuple[str, ...] = ()  # fixed addresses, "127.0.0.1:2222"; empty: found at start

    # how long, over what
    train_steps: int | None = None  # None with epochs None: 2000
    epochs: float | None = None
    batch_size: int = 100
    seed: int = 0
    threads: int = 1  # PyTorch threads of each task

    # what is kept and told
    logdir: str = ""
    save_checkpoint_secs: float | None = 60.0
    save_checkpoint_steps: int | None = None
    keep: int = 5
    save_summary_secs: float = 10.0
    log_every: int = 500
    eval_every: int | None = None

    # when things go wrong
    max_restarts: int = 3
    stall_timeout: float = 300.0

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_cluster(self)
        _check_length(self)

    @property
    def aggregate(self) -> int:
        """Gradients averaged in one update."""
        if self.mode != "sync" or self.ps == 0:
            return 1
        return self.replicas_to_aggregate or self.workers

    def steps(self, samples: int) -> int:
        """Global steps of the whole run, given the number of training samples."""
        if self.epochs is not None:
            steps = self.epochs * samples / (self.batch_size * self.aggregate)
            return max(
                1, math.ceil(round(steps, 6))
            )  # 2.2 epochs of 1500 in hundreds are 33 steps, not 33.000000000000004
        return 2000 if self.train_steps is None else self.train_steps

    def steps_per_epoch(self, samples: int) -> float:
        """Updates in one pass over the data."""
        return samples / (self.batch_size * self.aggregate)


def make(options: Mapping[str, Any]) -> Settings:
    """Settings from names and values. Raises ConfigError for an unknown name, with the nearest known one."""
    known = [entry.name for entry in fields(Settings)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are: {', '.join(known)}."
            raise ConfigError(f"unknown option {name!r}.", fix=hint)
    return Settings(**options)


def _check_numbers(settings: Settings) -> None:
    at_least: dict[str, int] = {
        "ps": 0, "workers": 1, "staleness": 0, "batch_size": 1, "seed": 0, "threads": 1, "keep": 1, "log_every": 1,
        "max_restarts": 0,
    }  # fmt: skip
    optional = {"replicas_to_aggregate": 1, "train_steps": 0, "save_checkpoint_steps": 1, "eval_every": 1}
    for name, least in (at_least | optional).items():
        value = getattr(settings, name)
        if value is None and name in optional:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r} cannot work.", fix=f"{name} must be an integer >= {least}.")
    if settings.seed >= 2**63:
        raise ConfigError(f"seed={settings.seed} cannot work.", fix="seed must be an integer < 2**63.")
    for name in ("save_checkpoint_secs", "save_summary_secs", "stall_timeout", "epochs"):
        value = getattr(settings, name)
        if value is None and name in ("save_checkpoint_secs", "epochs"):
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0 or math.isinf(value):
            raise ConfigError(f"{name}={value!r} cannot work.", fix=f"{name} must be a number > 0.")


def _check_cluster(settings: Settings) -> None:
    if settings.mode not in MODES:
        near = difflib.get_close_matches(str(settings.mode), MODES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the modes are: {', '.join(MODES)}."
        raise ConfigError(f"unknown mode {settings.mode!r}.", fix=hint)
    if settings.transport not in TRANSPORTS:
        raise ConfigError(f"unknown transport {settings.transport!r}.", fix=f"use one of: {', '.join(TRANSPORTS)}.")
    if settings.placement not in PLACEMENTS:
        raise ConfigError(f"unknown placement {settings.placement!r}.", fix=f"use one of: {', '.join(PLACEMENTS)}.")
    if settings.ps == 0 and settings.workers > 1:
        raise ConfigError(
            f"{settings.workers} workers have nobody to hold their parameters.",
            why="with ps=0 one process trains alone.",
            fix="add --ps 1.",
        )
    if settings.ps_hosts and len(settings.ps_hosts) != settings.ps:
        raise ConfigError(
            f"{len(settings.ps_hosts)} ps hosts are named, but ps={settings.ps}.", fix="name one host:port a ps task."
        )
    aggregate = settings.replicas_to_aggregate
    if aggregate is None or settings.mode != "sync":
        return
    if settings.ps and aggregate > settings.workers and not settings.accumulate:
        raise ConfigError(
            f"sync with replicas_to_aggregate={aggregate} can never take a step with {settings.workers} workers.",
            why=f"each step averages {aggregate} gradients and each worker gives one.",
            fix=f"start {aggregate - settings.workers} more, use --replicas-to-aggregate {settings.workers}, "
            "or let each worker give several gradients with --accumulate.",
        )


def _check_length(settings: Settings) -> None:
    if settings.train_steps is not None and settings.epochs is not None:
        raise ConfigError(
            f"both train_steps={settings.train_steps} and epochs={settings.epochs} say how long to train.",
            fix="give one of them.",
        )
