"""Exchange with equals: every tower holds the whole state, and gives the same averaged gradient to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evener import errors
from evener.state.rules import NARROW, weights
from evener.state.tensors import CPU, Slot, as_tensor, dtype_of, zeros
from evener.wire.layout import ITEMSIZE, Layout
from evener.worker.allreduce.group import Group
from evener.worker.exchange.exchange import Computed, Turn
from evener.worker.exchange.local import Local

#: What travels before the gradients: loss, examples, who asks to stop, who wants it cut short, who lacks a gradient,
#: who has validated and what came of it; then for each trained tensor how many towers have a gradient.
LOSS, EXAMPLES, STOPS, CUTS, LACKS, JUDGES, FIGURE, USED = range(8)
_LINE = 64  # bytes of a cache line: what follows the head is aligned as it was


@dataclass(frozen=True, slots=True)
class Travelling:
    """The memory of one tower's gradients and of a few numbers about them.

    Nearly always it is one flat tensor, so one collective: a head of four numbers, the buffers, the gradients. Memory
    of another dtype (BatchNorm counts its batches) travels beside it, as bytes where nothing of it is averaged.
    """

    block: Tensor  # uint8 [layout.nbytes]: what `Towers` fills
    head: Tensor  # [USED + trained tensors, or more]
    flats: tuple[Tensor, ...]  # all that travels, the head included

    @classmethod
    def of(cls, layout: Layout, device: torch.device = CPU, *, head: int = USED) -> Travelling:
        """`head`: numbers before those of the tensors."""
        nbytes = -(-(head + len(layout.trained)) * 8 // _LINE) * _LINE
        memory = zeros(nbytes + layout.nbytes, device)
        block = memory[nbytes:]
        averaged = {spec.dtype for spec in layout.specs if spec.trained}
        flats: list[Tensor] = []
        numbers: Tensor | None = None
        for segment in layout.segments:
            stop = segment.offset_nbytes + segment.numel * ITEMSIZE[segment.dtype]
            if segment.dtype not in averaged:
                flats.append(block[segment.offset_nbytes : stop])  # one tower's bytes, plus zeros
            elif segment.offset_nbytes == 0 and segment.dtype in ("float32", "float64"):
                flats.append(as_tensor(memory[: nbytes + stop], segment.dtype))
                numbers = flats[-1][: nbytes // ITEMSIZE[segment.dtype]]
            else:
                flats.append(block[segment.offset_nbytes : stop].view(dtype_of(segment.dtype)))
        if numbers is None:
            numbers = memory[:nbytes].view(torch.float32)
            flats.insert(0, numbers)
        return cls(block, numbers, tuple(flat for flat in flats if flat.numel()))


class AllReduce:
    """One tower of several.

    The mean is summed over the towers and divided by their number, or, where their batches are of unequal size, that
    of all samples: each tower's gradient times its samples, and the sum divided by all. The buffers (BatchNorm's
    statistics) are those of the last lease, as when ps tasks average. All towers see the same numbers, so they take
    the same update, stop at the same step and fail at the same step.

    Args:
        inner: this tower's replica of everything; it counts the leases of all towers.
        gradients: this tower's, over the memory that travels.
        suspect: the name of a tensor of this tower's own gradient that is not finite; empty if all are.
        early: that is to be asked before each sum, since the gradient is there where it is summed.
        stop_asked: why somebody outside wants the run to end early; empty otherwise.
    """

    def __init__(  # noqa: PLR0913 - a replica, what travels, and who is asked
        self,
        inner: Local,
        gradients: Slot,
        travelling: Travelling,
        group: Group,
        *,
        suspect: Callable[[], str],
        early: bool = False,
        stop_asked: Callable[[], str] = lambda: "",
    ) -> None:
        self._inner, self._gradients, self._travelling, self._group = inner, gradients, travelling, group
        self._suspect, self._early, self._stop_asked = suspect, early, stop_asked
        self._suspected = ""  # what it said before the last sum
        self._head, self._names = travelling.head, gradients.layout.trained
        self._asked: tuple[str, bool] | None = None  # why to stop, and whether it is complete then
        self._updates = 0
        self._judged: float | None = None  # what the last validation found, until all towers know
        self._turn = Turn(version=0, lease=-1)
        self._weights: Sequence[int] | None = None  # samples of each tower's gradient, where they are not the same
        self._blamed: list[int] = []  # towers whose gradient was not finite

    arrivals = 0

    def start(self) -> Turn:
        return self._mine(self._inner.start())

    def update(self, computed: Computed) -> Turn:
        if self._asked is None and (reason := self._stop_asked()):
            self._asked = reason, False
        asked = self._asked  # read once: a signal may ask at any moment
        self._weights = weights(self._inner.book.counts)  # of this update: the next one may have others
        mine, everybody = self._share()
        numbers = [computed.loss * mine, computed.examples, asked is not None, asked is not None and not asked[1]]
        judged, self._judged = self._judged, None
        numbers += [bool(computed.unused), judged is not None, judged or 0.0]
        self._say(numbers + [name not in computed.unused for name in self._names])
        self._sum()
        sums = self._head[:USED].tolist()
        unused: list[str] = []
        if sums[LACKS]:
            used = self._head[USED : USED + len(self._names)].tolist()
            unused = [name for name, towers in zip(self._names, used, strict=True) if not towers]
        if sums[STOPS]:
            reasons = self._group.gather(asked[0] if asked else "")
            stopped = self._inner.stop(next(filter(None, reasons)), complete=not sums[CUTS])
            if self._updates == 0:  # it was over before it began: a finished run is not trained further
                return self._mine(replace(stopped, rejected=stopped.stop))
        self._updates += 1
        if sums[JUDGES]:
            self._inner.judge({self._inner.figure: sums[FIGURE]})
        try:
            turn = self._inner.update(Computed(
                loss=sums[LOSS] / everybody, examples=round(sums[EXAMPLES]), seconds=computed.seconds,
                unused=unused,
            ))  # fmt: skip
        except errors.NonFinite as error:
            turn = self._refused(error)
        return self._mine(turn)

    def _refused(self, error: errors.NonFinite) -> Turn:
        """The mean is not finite, or too long. All towers see that, and take the same way out of it."""
        if self._gradients.first_non_finite(self._inner.infinite):
            error = self._named(error)
        elif not self._inner.measured(error):
            raise error  # the mean was fine, so no gradient is to blame but the step was too large
        blamed = [lease for rank in self._blamed for lease in self._inner.of_tower(rank)]
        return self._inner.refuse(blamed or self._inner.leases, error)

    def _sum(self) -> None:
        """Give the gradients and numbers; what lies there afterwards is the mean, and the last tower's buffers."""
        mine, everybody = self._share()
        if self._early:
            self._suspected = self._suspect()
        if self._group.rank != self._group.size - 1:
            for buffer in self._gradients.buffers:
                buffer.zero_()  # the sum is the last tower's
        for flat in self._gradients.trained:
            if flat.dtype in NARROW:  # first: the sum of 16-bit numbers may be too large for them where no mean is
                flat.mul_(mine / everybody) if self._weights is not None else flat.div_(everybody)
            elif self._weights is not None:
                flat.mul_(mine)
        self._group.sum(self._travelling.flats, f"update {self._turn.version + 1}", self._inner.settle)
        for flat in self._gradients.trained:
            if flat.dtype not in NARROW:
                flat.div_(everybody)

    def _share(self) -> tuple[int, int]:
        """What this tower's gradient weighs in the mean, and what all do."""
        if self._weights is None:
            return 1, self._group.size
        return self._weights[self._group.rank], sum(self._weights)

    def _say(self, numbers: list[float]) -> None:
        """Into the head; by NumPy, which takes a microsecond where PyTorch takes six."""
        if self._head.device.type == "cpu":
            self._head.numpy()[: len(numbers)] = numbers
        else:
            self._head[: len(numbers)] = torch.tensor(numbers, dtype=self._head.dtype)

    def _named(self, error: errors.NonFinite) -> errors.NonFinite:
        """The mean is not finite on any tower: each says whether it is to blame."""
        found = self._group.gather(self._suspected if self._early else self._suspect())
        self._blamed = [rank for rank, name in enumerate(found) if name]
        blamed = [f"{name!r} of worker:{rank}" for rank, name in enumerate(found) if name]
        if not blamed:
            return errors.not_finite(
                f"the mean of the gradients of {self._group.size} towers is not finite, though each of them is: "
                f"their sum is too large for its dtype, at global step {self._turn.version}."
            )
        what = f"the gradient of {', '.join(blamed)} is not finite, at global step {self._turn.version}"
        leases = ", ".join(self._inner.place_of(self._inner.of_tower(rank)) for rank in self._blamed)
        return errors.NonFinite(f"{what} ({leases}).", why=error.why, fix=error.fix)

    def _mine(self, turn: Turn) -> Turn:
        """The chief is tower 0."""
        self._turn = turn if self._group.rank == 0 else replace(turn, chief=False)
        return self._turn

    def show(self, what: str) -> int:
        return self._inner.show(what)

    def conclude(self) -> None:
        self._inner.conclude()

    def judge(self, figures: Mapping[str, float]) -> None:
        """Tower 0 alone has validated; the others hear of it with the next update."""
        if (figure := self._inner.figure) and figure not in figures:
            self._inner.judge(figures)  # it says which there are
        self._judged = figures.get(figure)

    def returned(self) -> Turn | None:
        return None

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        """Ask; all towers stop together after the next update, or before the first."""
        before = self._asked
        self._asked = (before[0], before[1] and complete) if before else (reason, complete)
        return None

    def close(self, reason: str = "") -> None:
        try:
            self._inner.close(reason)
        finally:
            self._group.close(failed=bool(reason))


#: What --allow-difference allows.
DIFFERENCES = ("recipe files", "first samples")


def agree(group: Group, facts: Mapping[str, object], allowed: Collection[str] = ()) -> list[str]:
    """Refuse towers that would not train the same.

    Args:
        facts: what must be equal on all, by the name that a person knows it by.
        allowed: names of those that may differ.

    Returns:
        Where they do, in sentences.

    Raises:
        ModelMismatch: on every tower, naming the first difference.
    """
    everybody = [json.loads(text) for text in group.gather(json.dumps(facts, default=str))]
    differences = []
    for rank, theirs in enumerate(everybody):
        for name, value in everybody[0].items():
            if theirs.get(name) == value:
                continue
            what = f"worker:{rank} has {name} {theirs.get(name)}, worker:0 has {value}."
            if name not in allowed:
                raise errors.ModelMismatch(
                    what,
                    why="all towers take the same updates of the same model.",
                    fix="start all of them with the same command and the same code"
                    + ("; or say --allow-difference if it is meant." if name in DIFFERENCES else "."),
                )
            differences.append(what)
    return differences
