"""Towers that each run the program: their gradients are averaged where it calls `optimizer.step()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evener.loop.owner import Step
from evener.loop.parts import Parts
from evener.state.in_place import LARGE
from evener.state.state import State
from evener.state.tensors import whole_views, zeros
from evener.wire.layout import Layout
from evener.worker.allreduce.allreduce import Travelling
from evener.worker.allreduce.group import Group
from evener.worker.compute.constants import checksum
from evener.worker.compute.towers import dictionary_of

#: What travels before the gradients: who asks to stop, who is idle, who has left the loop, whether tower 0's program
#: has something to tell, the sum of losses and how many know theirs, the sum of checksums of the parameters.
STOPS, IDLE, LEFT, NEWS, LOSS, LOSSES, CHECK = range(7)


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
    On a CPU the gradients of large parameters are summed where autograd has put them: P less memory, two copies less.

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
        self._counts = CHECK + 1 + optimizers
        self._size = self._counts + 2 * group.size
        large = {name for name, one in self._trained if home.type == "cpu" and one.nbytes >= LARGE}
        small = Layout(spec for spec in layout.specs if spec.name not in large)
        self._travelling = Travelling.of(small, home, head=self._size + len(large))
        views = whole_views(small, self._travelling.block)
        #: Where the gradients of small parameters travel; None: those of a large one travel where they are.
        self._gradients = [views.get(name) for name, _ in self._trained]
        self._buffers = [(dictionary_of(parts.model, s.name), views[s.name]) for s in layout.specs if not s.trained]
        self._first = [place[leaf] for (place, leaf), _ in self._buffers]
        self._steps = [type(optimizer).step for optimizer in parts.optimizers]
        self._lent: list[tuple[Tensor, Tensor | None]] = []  # parameters that have a mean in place of their gradient
        self.asked, self._heard = "", heard

    def give(self, step: Step, unused: int) -> Sums:
        """Average this tower's gradients with those of the others; the means are the parameters' `grad` then.

        Those of optimizers whose step others take are so until `put_back`.

        Args:
            unused: batches before them that no step has used, nor will.
        """
        given = [
            parameter.grad if owner == step.group else None
            for (_, parameter), owner in zip(self._trained, self._of, strict=True)
        ]
        return self._sum(step, given, unused)

    def idle(self, unused: int, *, left: bool) -> Sums:
        """Give nothing, but take the same steps as the others. `left`: the program has left its loop."""
        for _, parameter in self._trained if left else ():
            parameter.grad = None  # nobody looks at it any more, and zeros are to travel in as much memory
        return self._sum(None, [None] * len(self._trained), unused, left=left)

    def _sum(self, step: Step | None, given: Sequence[Tensor | None], unused: int, *, left: bool = False) -> Sums:
        asked = self.asked or self._stop_asked()
        head, rank, size = self._travelling.head, self._group.rank, self._group.size
        known = step is not None and not math.isnan(step.loss)
        loss = step.loss if step is not None and known else 0.0
        news = step.script if step is not None and rank == 0 else b""
        # At steps 1, 2, 4, 8, ...; a program that has left its loop may do with its parameters as it likes.
        check = None if left or self._state.step + 1 & self._state.step else self._checksum()
        numbers = [float(bool(asked)), float(step is None), float(left), float(bool(news)), loss, float(known)]
        numbers += [float(check or 0)]
        numbers += [float(step is not None and step.group == group) for group in range(len(self._parts.optimizers))]
        counts, over = [0.0] * size, [0.0] * size
        counts[rank] = float(len(step.leases)) if step is not None else 0.0
        over[rank] = float(unused)
        numbers += counts + over + [float(gradient is not None) for gradient in given]
        head[: len(numbers)] = torch.tensor(numbers, dtype=head.dtype)
        self._put_buffers()
        kept = [p.grad for (_, p), gradient in zip(self._trained, given, strict=True) if gradient is None]
        own = {one.data_ptr() for one in kept if one is not None and not one.is_sparse}
        sums = self._laid(given, own)
        large = [one.view(-1) for one, place in zip(sums, self._gradients, strict=True) if place is None]
        self._group.sum([*self._travelling.flats, *large], f"update {self._state.step + 1}", _nothing)
        told = head[: len(numbers)].tolist()
        gives = [round(number) for number in told[CHECK + 1 : self._counts]]
        self._place(sums, gives, told[self._size :], -1 if step is None else step.group, own)
        if told[NEWS] and (script := self._group.share(news)) and rank:
            self._heard(script)
        stop = ""
        if told[STOPS]:
            stop = next(filter(None, self._group.gather(asked)))
        return Sums(
            gives, [round(n) for n in told[self._counts : self._counts + size]],
            [round(n) for n in told[self._counts + size : self._size]], round(told[IDLE]),
            round(told[LEFT]), stop,
            told[LOSS] / told[LOSSES] if told[LOSSES] else math.nan, self._steps, self._differ(told, check),
        )  # fmt: skip

    def _differ(self, told: Sequence[float], check: int | None) -> bool:
        """Whether the checksum of this tower and of others differ; also where a pass ends: all are in one such sum."""
        if told[LEFT]:
            return False
        if check is not None:
            return round(told[CHECK]) != check * self._group.size
        return told[IDLE] == self._group.size and len(set(self._group.gather(str(self._checksum())))) > 1

    def _checksum(self) -> int:
        """Of the parameters: a number whose sum over all towers is exact, whatever it travels as."""
        return checksum([parameter for _, parameter in self._trained]) % ((1 << 24) // self._group.size)

    def _put_buffers(self) -> None:
        """What the model changes by itself, BatchNorm's statistics say, is tower 0's, as in PyTorch's own DDP."""
        for (place, leaf), travelling in self._buffers:
            now = place.get(leaf)
            if self._group.rank == 0 and _fits(now, travelling):
                travelling.copy_(now)
            else:
                travelling.zero_()

    def _laid(self, given: Sequence[Tensor | None], own: Collection[int]) -> list[Tensor]:
        """These gradients where they travel, zeros for those that are not given. What lies at `own` stays as it is."""
        laid: list[Tensor] = []
        seen = set(own)
        for (_, parameter), gradient, place in zip(self._trained, given, self._gradients, strict=True):
            dense = None if gradient is None else gradient.detach()
            if dense is not None and dense.is_sparse:
                dense = dense.to_dense()
            if place is not None:
                laid.append(place.zero_() if dense is None else place.copy_(dense))
            elif dense is None:
                laid.append(_zeros_like(parameter))
            else:  # two parameters may have been given one and the same by the program
                laid.append(dense.clone() if dense.data_ptr() in seen else dense.contiguous())
                seen.add(dense.data_ptr())
        return laid

    def _place(
        self, sums: Sequence[Tensor], gives: Sequence[int], used: Sequence[float], mine: int, own: Collection[int]
    ) -> None:
        """The means become gradients. `mine`: the optimizer whose step this tower takes; -1: none."""
        for number, ((_, parameter), owner, towers) in enumerate(zip(self._trained, self._of, used, strict=True)):
            if not gives[owner]:
                continue  # its own optimizer takes no step now: what it has stays
            grad, mean = parameter.grad, sums[number].div_(gives[owner]) if towers else None
            if owner != mine:  # the program has what it has, and its next backward adds to that
                self._lent.append((parameter, grad))
                parameter.grad = mean
            elif mean is None:
                parameter.grad = None
            elif grad is None or grad.is_sparse or grad.data_ptr() in own:  # what travels is written anew each time
                parameter.grad = mean if self._gradients[number] is None else mean.clone()
            elif grad.data_ptr() != mean.data_ptr():
                grad.copy_(mean)
        if self._group.rank:
            self._take_buffers()

    def _take_buffers(self) -> None:
        """Of those that the model replaces the old ones stay as they are, since a program may have kept them."""
        for ((place, leaf), travelling), first in zip(self._buffers, self._first, strict=True):
            now = place.get(leaf)
            if not _fits(now, travelling):
                continue
            if now is first or isinstance(now, nn.Parameter):
                now.data.copy_(travelling)  # unseen by autograd: a backward pass may still be to come
            else:
                place[leaf] = travelling.clone()

    def put_back(self) -> None:
        """The steps are taken: parameters of other optimizers get back the gradient that this program has made."""
        for parameter, own in self._lent:
            parameter.grad = own
        self._lent.clear()


def _zeros_like(parameter: Tensor) -> Tensor:
    """Contiguous, and written by nobody so far: of a large one the kernel gives pages when they are."""
    return zeros(parameter.nbytes).view(parameter.dtype).view(parameter.shape)


def _fits(now: Tensor | None, travelling: Tensor) -> TypeGuard[Tensor]:
    return now is not None and (now.shape, now.dtype, now.device) == (
        travelling.shape, travelling.dtype, travelling.device
    )  # fmt: skip


def _nothing() -> None:
    """While the numbers travel."""
