"""How good evener has to be beside others, and how good it was. Pure: no process, no file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from beside import ways
from beside.ways import Way


class Figures(Protocol):
    """What one measurement of one way gives."""

    @property
    def rate(self) -> float: ...
    @property
    def cpu_ms(self) -> float: ...
    @property
    def begin(self) -> float: ...


#: (work, way) -> one entry a round; None where it failed or did not learn.
Found = Mapping[tuple[str, str], Sequence[Figures | None]]


@dataclass(frozen=True)
class Aim:
    """A ratio of two ways in the same round, or seconds of one way."""

    work: str
    way: Way
    against: Way | None
    bound: float
    of: str = "rate"  # "rate": at least; "cpu": at most, for one gradient; "begin": at most, seconds

    @property
    def name(self) -> str:
        """As it stands in the table, and as documents quote it."""
        what = {"rate": "", "cpu": " (CPU)", "begin": " (command to first step, s)"}[self.of]
        return f"{self.work}: {self.way.name}{' / ' + self.against.name if self.against else ''}{what}"

    @property
    def wanted(self) -> str:
        return f"{'>=' if self.of == 'rate' else '<='} {self.bound:.2f}"

    def values(self, found: Found) -> list[float]:
        """One a round in which both were measured."""
        mine = found.get((self.work, self.way.name), [])
        if self.against is None:
            return [one.begin for one in mine if one]
        others = found.get((self.work, self.against.name), [])
        pairs = [(one, other) for one, other in zip(mine, others, strict=False) if one and other]
        return [one.rate / other.rate if self.of == "rate" else one.cpu_ms / other.cpu_ms for one, other in pairs]

    def met(self, values: Sequence[float]) -> bool:
        middle = statistics.median(values)
        return middle >= self.bound if self.of == "rate" else middle <= self.bound


def _at_least(work: str, way: Way, *others: tuple[Way, float]) -> list[Aim]:
    return [Aim(work, way, other, bound) for other, bound in others]


SMALL, LATE, LARGE, APART, LINK = "MLP 500", "MLP 100", "MLP 11 M", "MLP 500 between hosts", "1.6 MB between hosts"
AIMS = (
    *_at_least(
        SMALL, ways.ASYNC_2, (ways.TWO_ALONE, 0.90), (ways.TF_2, 3.5), (ways.STRATEGY, 4.0), (ways.RPC, 2.5),
        (ways.RAY, 3.0),
    ),
    *_at_least(SMALL, ways.FLYING_2, (ways.TWO_ALONE, 0.90), (ways.TF_2, 3.5)),
    *_at_least(SMALL, ways.ASYNC_1, (ways.ALONE, 0.98)),
    *_at_least(SMALL, ways.FLYING_1, (ways.ALONE, 0.98)),
    *_at_least(LATE, ways.ASYNC_2, (ways.TWO_ALONE, 0.85), (ways.TF_2, 7.0)),
    *_at_least(LATE, ways.FLYING_2, (ways.TWO_ALONE, 0.85), (ways.TF_2, 7.0)),
    *_at_least(LARGE, ways.ASYNC_2, (ways.TWO_ALONE, 0.85)),
    *_at_least(LARGE, ways.FLYING_2, (ways.TWO_ALONE, 0.85)),
    *_at_least(SMALL, ways.SYNC, (ways.LOCKSTEP, 0.85), (ways.SYNC_REPLICAS, 4.0), (ways.DDP, 2.2)),
    *_at_least(LARGE, ways.SYNC, (ways.LOCKSTEP, 0.85), (ways.DDP, 1.5)),
    *_at_least(SMALL, ways.TOWERS, (ways.DDP, 2.2)),
    *_at_least(LARGE, ways.TOWERS, (ways.DDP, 1.5)),
    Aim(SMALL, ways.ASYNC_2, ways.ALONE, 1.10, "cpu"),
    Aim(SMALL, ways.SYNC, ways.ALONE, 1.15, "cpu"),
    *_at_least(LINK, ways.LINK_OPEN, (ways.SOCKETS, 0.7)),
    *_at_least(LINK, ways.LINK_KEYS, (ways.SOCKETS, 0.4)),
    Aim(LINK, ways.LINK_OPEN, ways.SOCKETS, 1 / 0.7, "cpu"),
    Aim(LINK, ways.LINK_KEYS, ways.SOCKETS, 1 / 0.4, "cpu"),
    *_at_least(APART, ways.ASYNC_OPEN, (ways.TF_2, 3.0)),
    *_at_least(APART, ways.ASYNC_KEYS, (ways.TF_2, 2.0)),
    *_at_least(SMALL, ways.ALONE, (ways.PLAIN, 0.95)),
    *_at_least(LATE, ways.ALONE, (ways.PLAIN, 0.90)),
    Aim(SMALL, ways.ASYNC_2, None, 2.0, "begin"),
)  # fmt: skip


def learned(losses: Mapping[str, float], *, untrained: float) -> dict[str, bool]:
    """Way -> whether its loss fell to about what the others reach after as many updates.

    About: at most 1.5 times the median and 0.1 (stale gradients and other batches differ so much), and below two
    thirds of the loss of a model that knows nothing.
    """
    usual = statistics.median(losses.values()) if losses else 0.0
    return {name: loss <= min(1.5 * usual + 0.1, untrained * 2 / 3) for name, loss in losses.items()}
