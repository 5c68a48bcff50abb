"""What a run gave: the object that `evener.run` returns and `--json` prints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evener.errors import CheckpointError
from evener.modes import Sync
from evener.report import AnyReport, Evaluated, Failed, Finished
from evener.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from evener.recipes.recipe import Recipe

#: Fields that are no figures.
_INNER = ("leads", "made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Figures of one run of `evener.run` or `evener train`; of a resumed run, since it was resumed.

    `validation_*` is None where the recipe has no validation data, no such metric, or the run was cut short.
    """

    recipe: str
    mode: str
    ps: int
    workers: int
    replicas_to_aggregate: int | None
    global_step: int
    examples: int  # whose gradients were applied
    seconds: float  # from the first worker's first step to the last update
    steps_per_second: float
    examples_per_second: float
    train_loss: float | None  # mean of the last 50 gradients applied
    validation_loss: float | None
    validation_accuracy: float | None
    validation_accuracy_ema: float | None
    validation: dict[str, float]  # every metric of the final evaluation
    dropped_gradients: int
    mean_staleness: float
    max_staleness: int
    checkpoint: str
    logdir: str
    reason: str  # why it ended
    first_step_seconds: float | None = None  # from the command to the first update
    towers: int = 0
    leads: bool = True  # False: another process of torchrun's tells the figures, and alone has validated
    made: Recipe | None = field(default=None, repr=False, compare=False)  # of a run in this process

    def as_dict(self) -> dict[str, Any]:
        return {entry.name: _json(getattr(self, entry.name)) for entry in fields(self) if entry.name not in _INNER}

    def model(self, *, ema: bool = False) -> nn.Module:
        """The trained module in eval mode: plain PyTorch on the CPU, that belongs to the caller.

        Args:
            ema: with the moving averages of the parameters.

        Raises:
            CheckpointError: the run has written no checkpoint, or on another machine.
            ConfigError: the recipe keeps no averages.
        """
        from evener.trained import load_model

        if not self.checkpoint or not Path(self.checkpoint).exists():
            raise CheckpointError(
                f"the run's last checkpoint ({self.checkpoint or 'none'}) is not here.",
                why="the model is read from it; it was written on another machine, or deleted since.",
                fix="give a logdir that the machines share, or call evener.load where it is.",
            )
        return load_model(self.made or self.recipe, self.checkpoint, ema=ema)


def _json(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _json(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Outcome:
    """Collects the reports of a run into its result."""

    def __init__(self) -> None:
        self.finished: Finished | None = None
        self.evaluated: Evaluated | None = None
        self.failures: list[Failed] = []

    def hear(self, report: AnyReport) -> None:
        match report:
            case Finished():
                self.finished = report
            case Evaluated(final=True):
                self.evaluated = report
            case Failed():
                self.failures.append(report)

    def result(self, settings: Settings, *, first_step_seconds: float | None) -> Result:
        """Only of a run that finished."""
        finished = self.finished
        assert finished is not None
        values = self.evaluated.values if self.evaluated else {}
        steps = finished.global_step - finished.first_step
        seconds = finished.seconds
        return Result(
            recipe=settings.recipe, mode=settings.way, ps=settings.ps,
            workers=settings.processes,
            replicas_to_aggregate=settings.aggregate if settings.ps and isinstance(settings.mode, Sync) else None,
            global_step=finished.global_step, examples=finished.examples, seconds=seconds,
            steps_per_second=steps / seconds if seconds > 0 else 0.0,
            examples_per_second=finished.examples / seconds if seconds > 0 else 0.0,
            train_loss=finished.train_loss if math.isfinite(finished.train_loss) else None,
            validation_loss=values.get("validation_loss"), validation_accuracy=values.get("validation_accuracy"),
            validation_accuracy_ema=values.get("validation_accuracy_ema"), validation=values,
            dropped_gradients=finished.dropped_gradients, mean_staleness=finished.mean_staleness,
            max_staleness=finished.max_staleness, checkpoint=finished.checkpoint, logdir=settings.logdir,
            reason=finished.reason, first_step_seconds=first_step_seconds, towers=settings.towers,
        )  # fmt: skip
