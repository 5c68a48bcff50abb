"""What a task tells the person who watches it. Tasks report; whoever shows it decides how."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Report(msgspec.Struct, frozen=True, tag=True):
    """Root of all reports."""


class Status(Report, frozen=True):
    """Where one task stands now."""

    task: str  # "worker:1"
    state: str  # "starting", "training", "waiting", "evaluating", "saving", "done"
    step: int = 0  # a worker's local steps, a shard's version
    examples_per_second: float = 0.0
    staleness: float = 0.0  # mean over the sliding window
    waiting_for: str = ""  # for whom, for what; empty when it does not wait


class Progress(Report, frozen=True):
    """Where the run stands now; told by the task that owns the global step."""

    global_step: int
    train_steps: int  # 0: not known
    examples_per_second: float
    steps_per_second: float
    loss: float  # nan: not known
    dropped: int
    waiting_for: str = ""
    updates: int = 0  # of this run, without what it resumed from


class Line(Report, frozen=True):
    """One line for the log: said once, at once."""

    task: str
    text: str


class Leaves(Report, frozen=True):
    """A task that the others cannot do without was told to leave: the run is to be saved and ended.

    `machine`: its whole machine goes away, so that this holds if all others are there too.
    """

    task: str
    machine: bool = False


class Published(Report, frozen=True):
    """A ps task listens here."""

    task: str
    address: str


class Evaluated(Report, frozen=True):
    """Validation of the whole set at one global step."""

    global_step: int
    values: dict[str, float]  # "validation_loss", "validation_accuracy", "validation_accuracy_ema", ...
    final: bool


class Finished(Report, frozen=True):
    """The owner of the global step has ended; its figures for the whole run of this process."""

    global_step: int
    first_step: int  # where this run began; more than 0 when it resumed
    examples: int
    seconds: float
    train_loss: float  # nan: not known
    dropped_gradients: int
    mean_staleness: float
    max_staleness: int
    checkpoint: str
    reason: str


class Failed(Report, frozen=True):
    """A task ends with an error: what happened, and its traceback if it was not one of our own errors."""

    task: str
    kind: str
    what: str
    why: str = ""
    fix: str = ""
    traceback: str = ""
    context: str = ""  # "global step 812, lease 811"


AnyReport = Status | Progress | Line | Leaves | Published | Evaluated | Finished | Failed
Reporter = Callable[[AnyReport], None]
