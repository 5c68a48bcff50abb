"""The same network as the peers', as a recipe. Apart from evener_way.py, since a launcher imports no PyTorch."""

from __future__ import annotations

from typing import Any

import work
from job import Job, Meter
from torch import Tensor

import evener
from evener.session.hooks import StepResult


class Count(evener.Hook):
    """Counts this worker's steps where the peers count theirs."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def begin(self, session: Any) -> None:
        self.meter = Meter(self.job.meter, self.job.index + int(session.task.partition(":")[2]))

    def after_step(self, session: Any, result: StepResult) -> None:
        self.meter.count(result.loss)


def recipe(*, model: str, hidden: int, data: str, meter: str, index: int) -> evener.Recipe:
    job = Job(
        role="worker", index=index, ps=(), workers=(), mode="", model=model, hidden=hidden, data=data, meter=meter,
        keys="",
    )  # fmt: skip

    def both() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        inputs, target = work.samples(job)
        return (inputs, target), (inputs[:100], target[:100])

    return evener.Recipe(
        model=lambda: work.model(job), data=both, optimizer=lambda made: work.optimizer(job, made.parameters()),
        hooks=lambda: [Count(job)],
    )  # fmt: skip
