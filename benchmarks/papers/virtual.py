"""Real gradients on a virtual clock: what a mode learns in how many seconds, with workers of known speeds.

The real policies decide (`evener.simulate`), PyTorch computes each gradient on the parameters that its worker had, and
batches are taken in the order in which gradients are applied: one that is dropped comes again later, as with leases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from evener.modes import Mode
from evener.simulate.crew import Pace, SimulatedCrew

#: Versions of the parameters that are kept: no gradient is older.
KEPT = 400


@dataclass(frozen=True)
class Task:
    """What is learned."""

    model: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    batch: int
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy


@dataclass
class Curve:
    """Test loss and error by virtual seconds."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def until(self, loss: float) -> float:
        """The first time with this loss or a lower one; without end if it never came."""
        return next((s for s, value in zip(self.seconds, self.losses, strict=True) if value <= loss), math.inf)


class Learner:
    """Parameters by version, and plain SGD.

    Args:
        scale: of a gradient, from its staleness.
        share: samples of each worker's batch; None: all have `task.batch`.
    """

    def __init__(
        self, task: Task, lr: float, seed: int, scale: Callable[[int], float] = lambda _staleness: 1.0,
        share: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.task, self.lr, self.scale, self.share = task, lr, scale, share
        self.model = task.model()
        self.versions = {0: parameters_to_vector(self.model.parameters()).detach().clone()}
        self.version = 0
        self._generator = torch.Generator().manual_seed(seed + 1)
        self._order = torch.empty(0, dtype=torch.long)
        self._next = 0

    def _batch(self, samples: int) -> tuple[Tensor, Tensor]:
        inputs, labels = self.task.train
        if self._next + samples > len(self._order):
            self._order = torch.cat([self._order[self._next :], torch.randperm(len(inputs), generator=self._generator)])
            self._next = 0
        chosen = self._order[self._next : self._next + samples]
        self._next += samples
        return inputs[chosen], labels[chosen]

    def _gradient(self, version: int, samples: int) -> Tensor:
        vector_to_parameters(self.versions[version], self.model.parameters())
        self.model.train()
        inputs, labels = self._batch(samples)
        gradients = torch.autograd.grad(self.task.loss(self.model(inputs), labels), list(self.model.parameters()))
        return parameters_to_vector(gradients)

    def applied(self, _time: float, given: Sequence[tuple[int, int]]) -> None:
        """One update. Raises FloatingPointError when it diverges."""
        total, weight = torch.zeros_like(self.versions[self.version]), 0
        for worker, version in given:
            samples = self.share[worker] if self.share else self.task.batch
            total += samples * self.scale(self.version - version) * self._gradient(version, samples)
            weight += samples
        new = self.versions[self.version] - self.lr / weight * total
        if not torch.isfinite(new).all():
            raise FloatingPointError
        self.version += 1
        self.versions[self.version] = new
        self.versions.pop(self.version - KEPT, None)

    def test(self) -> tuple[float, float]:
        """Loss and share of wrong answers."""
        vector_to_parameters(self.versions[self.version], self.model.parameters())
        self.model.eval()
        with torch.no_grad():
            output = self.model(self.task.test[0])
            wrong = (output.argmax(1) != self.task.test[1]).float().mean()
            return float(self.task.loss(output, self.task.test[1])), float(wrong)


def learn(
    task: Task, mode: Mode, pace: Pace, workers: int, *, lr: float, seed: int, seconds: float, every: float,
    enough: float = 0.0, **learner: Any,
) -> Curve:  # fmt: skip
    """Train for so many virtual seconds, or until the test loss is low enough."""
    pupil, curve = Learner(task, lr, seed, **learner), Curve()
    crew = SimulatedCrew(mode.start(0, workers), workers, pace, pupil.applied)
    now = 0.0
    while now < seconds:
        try:
            crew.play(now, now + every)
        except FloatingPointError:
            break
        now += every
        loss, wrong = pupil.test()
        curve.seconds.append(now)
        curve.losses.append(loss)
        curve.errors.append(wrong)
        if loss <= enough or not math.isfinite(loss) or loss > 50:
            break
    return curve
