"""Towers that each run the program: their gradients are averaged where it calls `optimizer.step()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from evener.loop.owner import Step
from evener.loop.parts import Parts
from evener.state.state import State
from evener.state.tensors import whole_views
from evener.worker.allreduce.allreduce import Travelling
from evener.worker.allreduce.group import Group
from evener.worker.compute.constants import checksum

#: What travels before the gradients: who asks to stop, who is idle, who has left the loop, whether tower 0's program
#: has something to tell, the sum of losses and how many know theirs, the sum of checksums of the parameters and how
#: many towers have made one.
STOPS, IDLE, LEFT, NEWS, LOSS, LOSSES, CHECK, CHECKS = range(8)


@dataclass(frozen=True, slots=True)
class Sums:
    """What all towers gave, seen alike by all."""

    gives: list[int]  # of each optimizer, how many towers gave a gradient
    counts: list[int]  # of each tower, batches that its gradient was computed on
    unused: list[int]  # of each tower, batches before them that no step will use
    idle: int  # towers
    left: int  # of them, those whose program has left its loop
    stop: str
    loss: float
    steps: Sequence[Callable[[Optimizer], Any]]
    differ: bool  # parameters of this tower and of others, which should be the same


class Averaging:
    """One tower's part in it.

    Towers call `give` or `idle` equally often, but need not be at the same optimizer: one whose scaler has left out
    a step is ahead of the others. Each parameter's gradient is the mean over the towers that gave its optimizer one.

    Args:
        stop_asked: why somebody outside wants the run to end early; empty otherwise.
        heard: gets what tower 0's program keeps, on the others, before the step that it was told with.
    """

    def __init__(  # noqa: PLR0913 - whom it meets, with what
        self,
        group: Group,
        state: State,
        parts: Parts,
        home: torch.device,
        *,
        stop_asked: Callable[[], str],
        heard: Callable[[bytes], None],
    ) -> None:
        self._group, self._state, self._parts, self._stop_asked = group, state, parts, stop_asked
        layout = state.parameters.layout
        named = dict(parts.model.named_parameters())
        self._trained = [(name, named[name]) for name in layout.trained]
        self._of = [next(i for i, names in enumerate(parts.names) if name in names) for name, _ in self._trained]
        optimizers = len(parts.optimizers)
        self._counts = CHECKS + 1 + optimizers
        self._size = self._counts + 2 * group.size
        self._travelling = Travelling.of(layout, home, head=self._size)
        views = whole_views(layout, self._travelling.block)
        self._gradients = [views[name] for name, _ in self._trained]
        buffers = dict(parts.model.named_buffers())
        self._buffers = [(buffers[s.name], views[s.name]) for s in layout.specs if s.name in buffers]
        self._steps = [type(optimizer).step for optimizer in parts.optimizers]
        self.asked, self._heard = "", heard

    def give(self, step: Step, unused: int) -> Sums:
        """Average this tower's gradients with those of the others; the means are the parameters' `grad` then.

        Args:
            unused: batches before them that no step has used, nor will.
        """
        for (_, parameter), gradient, owner in zip(self._trained, self._gradients, self._of, strict=True):
            if owner != step.group or parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad)
        used = [
            float(owner == step.group and parameter.grad is not None)
            for (_, parameter), owner in zip(self._trained, self._of, strict=True)
        ]
        return self._sum(step, used, unused)

    def idle(self, unused: int, *, left: bool) -> Sums:
        """Give nothing, but take the same steps as the others. `left`: the program has left its loop."""
        for gradient in self._gradients:
            gradient.zero_()
        return self._sum(None, [0.0] * len(self._trained), unused, left=left)

    def _sum(self, step: Step | None, used: list[float], unused: int, *, left: bool = False) -> Sums:
        asked = self.asked or self._stop_asked()
        head, rank, size = self._travelling.head, self._group.rank, self._group.size
        known = step is not None and not math.isnan(step.loss)
        loss = step.loss if step is not None and known else 0.0
        news = step.script if step is not None and rank == 0 else b""
        check = self._checksum(size, sure=step is None and not left)
        numbers = [float(bool(asked)), float(step is None), float(left), float(bool(news)), loss, float(known)]
        numbers += [float(check or 0), float(check is not None)]
        numbers += [float(step is not None and step.group == group) for group in range(len(self._parts.optimizers))]
        counts, over = [0.0] * size, [0.0] * size
        counts[rank] = float(len(step.leases)) if step is not None else 0.0
        over[rank] = float(unused)
        numbers += counts + over + used
        head[: len(numbers)] = torch.tensor(numbers, dtype=head.dtype)
        self._put_buffers()
        self._group.sum(self._travelling.flats, f"update {self._state.step + 1}", _nothing)
        told = head[: len(numbers)].tolist()
        gives = [round(number) for number in told[CHECKS + 1 : self._counts]]
        self._place(gives, told[self._size :])
        if told[NEWS] and (script := self._group.share(news)) and rank:
            self._heard(script)
        stop = ""
        if told[STOPS]:
            stop = next(filter(None, self._group.gather(asked)))
        return Sums(
            gives, [round(n) for n in told[self._counts : self._counts + size]],
            [round(n) for n in told[self._counts + size : self._size]], round(told[IDLE]),
            round(told[LEFT]), stop,
            told[LOSS] / told[LOSSES] if told[LOSSES] else math.nan, self._steps,
            check is not None and round(told[CHECK]) != check * round(told[CHECKS]),
        )  # fmt: skip

    def _checksum(self, size: int, *, sure: bool) -> int | None:
        """Of the parameters, where they are compared: at steps 1, 2, 4, 8, ... and where a pass ends (`sure`).

        A number whose sum over all towers is exact, whatever it travels as.
        """
        step = self._state.step + 1
        if not sure and step & (step - 1):
            return None
        return checksum([parameter for _, parameter in self._trained]) % ((1 << 24) // size)

    def _put_buffers(self) -> None:
        """What the model changes by itself, BatchNorm's statistics say, is tower 0's, as in PyTorch's own DDP."""
        for buffer, travelling in self._buffers:
            if self._group.rank == 0:
                travelling.copy_(buffer)
            else:
                travelling.zero_()

    def _place(self, gives: Sequence[int], used: Sequence[float]) -> None:
        for (_, parameter), gradient, owner, towers in zip(self._trained, self._gradients, self._of, used, strict=True):
            if not gives[owner]:
                continue  # its own optimizer takes no step now: what it has stays
            if not towers:
                parameter.grad = None
            elif parameter.grad is None or parameter.grad.is_sparse:
                parameter.grad = gradient.div_(gives[owner]).clone()
            else:  # in a copy: what travels is written anew for the next optimizer's step
                parameter.grad.copy_(gradient.div_(gives[owner]))
        for buffer, travelling in self._buffers:
            buffer.data.copy_(travelling)  # unseen by autograd: a backward pass may still be to come


def _nothing() -> None:
    """While the numbers travel."""
