"""What happens around steps. A hook has one reason to exist and says it in its docstring.

Order (SEMANTICS H1, H7): every hook's `begin`; the session starts; every `after_create`; then for each step every
`before_step`, the gradient, every `before_update`, the update, every `after_step`; at a normal end every `end`; and
always, in reverse order, every `close`. A hook that fails ends the run and is named.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evener.errors import NOT_FINITE_FIX, ConfigError, NonFinite
from evener.recipes.recipe import Recipe
from evener.recipes.references import kind_of, place_of
from evener.report import Line, Status
from evener.tally import Window

if TYPE_CHECKING:
    from evener.session.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One step of this worker, after its update."""

    global_step: int  # of the parameters that the model holds now
    local_step: int  # this worker's count, from 1
    loss: float  # of this worker's batch
    examples: int
    lease: int
    seconds: float  # of computing, without waiting
    chief: bool
    rejected: str  # why the gradient was dropped, when it was
    staleness: int
    dropped: int
    learning_rate: float
    data_seconds: float = 0.0  # of `seconds`, waiting for the batch


#: The moments of a hook.
MOMENTS = ("begin", "after_create", "before_step", "before_update", "after_step", "end", "close")


class Hook:
    """Does nothing at every moment; override those you need."""

    def begin(self, session: Session) -> None:
        """Before anything is started."""

    def after_create(self, session: Session) -> None:
        """The first parameters are here."""

    def before_step(self, session: Session) -> None:
        """Before a batch is computed."""

    def before_update(self, session: Session, loss: float) -> None:
        """The gradient is computed, each parameter's in its `grad`, and not given away yet.

        What is changed there takes effect, for this worker's gradient: clip it, mask it, set it to None. To raise
        keeps it from everybody. Clone what you keep: a gradient of 1 MB and more lies where the next one will.
        """

    def after_step(self, session: Session, result: StepResult) -> None:
        """The update is done; the model holds new parameters."""

    def end(self, session: Session) -> None:
        """The run has ended as it should."""

    def close(self, session: Session) -> None:
        """Always called, also after an error."""


def acts(hook: Hook, moment: str) -> bool:
    """Whether it does something at this moment: most hooks have one moment or two, and calls cost time."""
    return getattr(getattr(hook, moment), "__func__", None) is not getattr(Hook, moment)


def hooks_of(recipe: Recipe) -> list[Hook]:
    """The recipe's own hooks. Raises ConfigError for what is none, before anything is trained."""
    if recipe.hooks is None:
        return []
    hooks: Any = recipe.hooks()
    if not isinstance(hooks, list | tuple):
        hooks = [hooks]
    for hook in hooks:
        missing = [name for name in MOMENTS if not callable(getattr(hook, name, None))]
        if missing or isinstance(hook, type):
            raise ConfigError(
                f"the recipe's hooks{place_of(recipe.hooks)} gave {kind_of(hook)}, which is no hook.",
                why="a hook is called at the start, around each step and at the end.",
                fix="let hooks() return a list of objects of classes derived from evener.Hook.",
            )
    return list(hooks)


class StopAtStep(Hook):
    """End the run when the global step reaches `last_step`.

    The run's own length (`--train-steps`) is kept by the owner of the parameters and is exact in every mode. With
    several workers this hook can only ask, so updates under way are still applied.
    """

    def __init__(self, last_step: int) -> None:
        self.last_step = last_step

    def after_create(self, session: Session) -> None:
        if session.turn.version >= self.last_step:  # SEMANTICS H17 runs one step more; a finished job should not
            session.stop(f"already at step {session.turn.version} of {self.last_step}")

    def after_step(self, session: Session, result: StepResult) -> None:
        if result.global_step >= self.last_step:
            session.stop(f"reached step {self.last_step}")


class StopOnNaN(Hook):
    """End the run at the first loss that is not finite, before its gradient reaches anybody."""

    def before_update(self, session: Session, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFinite(
                f"the loss of {session.task} is {loss} at global step {session.turn.version} "
                f"(local step {session.local_step + 1}), lease {session.turn.lease}{self._samples(session)}.",
                why="its gradient would make every parameter NaN; it was not applied.",
                fix=NOT_FINITE_FIX,
            )

    def _samples(self, session: Session) -> str:
        turn = session.turn
        others = f" and {len(turn.more)} more" if turn.more else ""
        if turn.count:
            return f" and the {turn.count - 1} samples after it"
        return f"{others} ({session.batches.named(turn.lease)})"


class LogEvery(Hook):
    """Say every `steps` local steps how training goes: this worker, and the whole cluster, over a sliding window."""

    def __init__(self, steps: int, clock: Callable[[], float], examples_per_step: float) -> None:
        self.steps = steps
        self._examples_per_step = examples_per_step
        self._clock = clock
        self._last_status = clock()
        self._mine, self._batches, self._cluster = Window(clock), Window(clock), Window(clock)
        self._global_step: int | None = None
        self._computing = self._waiting = 0.0  # seconds since the last line

    def after_create(self, session: Session) -> None:
        self._global_step = session.turn.version

    def before_step(self, session: Session) -> None:
        if session.local_step == 0:  # a worker's start, and its wait for others, are no part of its speed
            for window in (self._mine, self._batches, self._cluster):
                window.start()

    def after_step(self, session: Session, result: StepResult) -> None:
        self._mine.add(result.examples)
        self._batches.add()
        self._cluster.add((result.global_step - (self._global_step or 0)) * self._examples_per_step)
        self._global_step = result.global_step
        self._computing += result.seconds
        self._waiting += result.data_seconds
        now = self._clock()
        if now - self._last_status >= 0.2:
            self._last_status = now
            rate = self._mine.rate()
            session.report(Status(session.task, "training", result.local_step, rate, result.staleness))
        if result.local_step % self.steps == 0:
            batches = self._batches.rate()
            session.report(Line(session.task, (
                f"global step {result.global_step}, local step {result.local_step}: loss {result.loss:.4f}; "
                f"cluster {self._cluster.rate():.0f} examples/s; {session.task} {self._mine.rate():.0f} examples/s, "
                f"{1 / batches if batches else math.nan:.4f} s/batch{self._share()}"
            )))  # fmt: skip

    def _share(self) -> str:
        """What part of a step was spent on waiting for data, if one can see it."""
        share = self._waiting / self._computing if self._computing else 0.0
        self._computing = self._waiting = 0.0
        return f", {share:.1%} of it waiting for data" if share >= 0.001 else ""
