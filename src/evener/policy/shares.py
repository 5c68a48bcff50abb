"""How many samples each worker gets, so that all end together: from their speeds, or as somebody has said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from statistics import median

from evener.errors import ConfigError
from evener.policy.paces import Pace, Paced

#: Rounds between two looks at the shares.
EVERY = 10
#: Shares are changed where a round then takes at most so large a part of the time.
BAND = 0.9


def allot(
    total: int,
    speeds: Sequence[float],
    quantum: int = 1,
    caps: Sequence[int | None] = (),
    overheads: Sequence[float] = (),
) -> list[int]:
    """Share out `total` samples so that the last one to end does so as early as can be.

    Everybody gets one quantum, then the next goes to whoever would end first with it (ties: to the lower index).
    A sum below `total` means that nobody may have more.

    Args:
        total: samples, a multiple of `quantum` and at least one quantum each.
        speeds: samples a second, of each worker; above 0.
        caps: the most of each, rounded down to whole quanta, but at least one; None: no bound.
        overheads: seconds of any batch, of each worker; empty: none.

    >>> allot(40, [1, 1], overheads=[0, 10])
    [25, 15]
    >>> allot(400, [1, 1/2, 1/3, 1/4]), allot(400, [1, 1, 1, 0.1])
    ([192, 96, 64, 48], [130, 129, 129, 12])
    """
    count, parts = len(speeds), total // quantum
    assert total % quantum == 0 and parts >= count, f"{total} samples for {count} workers by {quantum}"
    bounds = [parts if cap is None else max(1, cap // quantum) for cap in [*caps, *[None] * (count - len(caps))]]
    begins = list(overheads) or [0.0] * count
    shares = _most(parts, [speed / quantum for speed in speeds], bounds, begins)
    rest = min(parts, sum(bounds)) - sum(shares)

    def ends(at: int) -> float:
        return begins[at] + (shares[at] + 1) * quantum / speeds[at]

    heap = [(ends(at), at) for at in range(count) if shares[at] < bounds[at]]
    heapify(heap)
    for _ in range(rest):
        _, at = heap[0]
        shares[at] += 1
        heapreplace(heap, (ends(at) if shares[at] < bounds[at] else float("inf"), at))
    return [share * quantum for share in shares]


def _most(parts: int, speeds: Sequence[float], bounds: Sequence[int], begins: Sequence[float]) -> list[int]:
    """What everybody gets for certain: a million samples are not handed out one by one."""
    capped: set[int] = set()
    late: set[int] = set()  # their overhead alone takes as long as all that the others do: one each
    found: dict[int, int] = {}
    while open_ := [at for at in range(len(speeds)) if at not in capped and at not in late]:
        rest = parts - sum(bounds[at] for at in capped) - 2 * (len(open_) + len(late))
        when = (rest + sum(begins[at] * speeds[at] for at in open_)) / sum(speeds[at] for at in open_)
        if behind := {at for at in open_ if begins[at] > 0 and when <= begins[at]}:
            late |= behind
            continue
        found = {at: int(speeds[at] * max(0.0, when - begins[at])) for at in open_}
        full = {at for at in open_ if found[at] >= bounds[at]}
        if not full:
            break
        capped |= full
        late, found = set(), {}  # there is more time than it seemed
    return [bounds[at] if at in capped else max(1, min(bounds[at], found.get(at, 1))) for at in range(len(speeds))]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharePlan:
    """What a run says of shares. All but `by_speed` in samples, by worker.

    Raises:
        ConfigError: the quantum does not divide what is shared out, or it is too few.
    """

    sizes: tuple[int, ...]  # as somebody has said, or the same for all
    by_speed: bool = False  # they are only the beginning
    quantum: int = 1  # by speed: all are multiples of it
    caps: tuple[int, ...] = ()  # the most of each; empty: no bounds

    @property
    def total(self) -> int:
        """Of one round."""
        return sum(self.sizes)

    def __post_init__(self) -> None:
        if self.by_speed and (self.total % self.quantum or self.total < self.quantum * len(self.sizes)):
            raise ConfigError(
                f"{self.total} samples cannot be shared out among {len(self.sizes)} workers by {self.quantum}.",
                why="everybody gets a multiple of --batch-quantum, at least one.",
                fix=f"make workers x --batch-size a multiple of {self.quantum}, of at least "
                f"{self.quantum * len(self.sizes)}, or lower --batch-quantum.",
            )  # fmt: skip


class Shares:
    """Each worker's share of a round. Pure: the same calls give the same shares.

    By speed: every 10 rounds the samples are shared out anew; that counts if a round then takes at most 0.9 of the
    time, so that shares rest where speeds do. When a worker comes or goes it counts at once.
    """

    def __init__(self, plan: SharePlan) -> None:
        self.plan = plan
        self._caps: dict[int, int] = dict(enumerate(plan.caps))
        self._here = set(range(len(plan.sizes)))  # those who have not left: one who has not come yet is awaited
        self._sizes = dict(enumerate(plan.sizes))
        self._paced: dict[int, Paced] = {}
        self._rounds = 0
        if plan.by_speed:
            self._sizes = self._allotted()

    def size(self, worker: int) -> int:
        """Samples that this worker is to take next."""
        size = self._sizes.get(worker, self.plan.quantum)
        return min(size, max(1, self._caps[worker])) if worker in self._caps else size

    def joined(self, worker: int) -> list[str]:
        """A worker has come. Returns what people should know of the shares."""
        if worker in self._here:
            return []
        self._here.add(worker)
        return self._share_out(at_once=True)

    def left(self, worker: int) -> list[str]:
        """A worker is gone: its share falls to the others."""
        self._here.discard(worker)
        return self._share_out(at_once=True)

    def took(self, worker: int, samples: int, seconds: float) -> None:
        """A gradient of so many samples took this worker so long to compute, without any waiting for others."""
        if samples > 0 and seconds > 0:
            self._paced.setdefault(worker, Paced()).took(samples, seconds)

    def round_over(self) -> list[str]:
        """So many samples as are shared out were applied."""
        self._rounds += 1
        return self._share_out() if self._rounds % EVERY == 0 else []

    def too_big(self, worker: int, samples: int) -> int:
        """So many do not fit into its memory: from now on it gets at most half. Returns the bound."""
        quantum = self.plan.quantum
        self._caps[worker] = max(quantum, samples // 2 // quantum * quantum)
        if self.plan.by_speed:
            self._sizes = {**self._sizes, **self._allotted()}
        return self._caps[worker]

    def paces(self) -> dict[int, Pace]:
        """Of those who are here; who has not been measured counts as the median of the others."""
        known = {worker: paced.pace() for worker, paced in self._paced.items() if worker in self._here}
        usual = Pace(0.0, 1.0)
        if known:
            rates = [1 / pace.each for pace in known.values()]
            usual = Pace(median(pace.overhead for pace in known.values()), 1 / median(rates))
        return {worker: known.get(worker, usual) for worker in sorted(self._here)}

    def speeds(self) -> Mapping[int, float]:
        """Samples a second in a batch of the usual size, of those who are here."""
        usual = self.plan.total / len(self.plan.sizes)
        return {worker: usual / pace.seconds(usual) for worker, pace in self.paces().items()}

    def _allotted(self) -> dict[int, int]:
        paces = self.paces()
        shares = allot(
            self.plan.total, [1 / pace.each for pace in paces.values()], self.plan.quantum,
            [self._caps.get(worker) for worker in paces], [pace.overhead for pace in paces.values()],
        )  # fmt: skip
        return dict(zip(paces, shares, strict=True))

    def _share_out(self, *, at_once: bool = False) -> list[str]:
        if not self.plan.by_speed or not self._here:
            return []
        before, paces, speeds, now = self._sizes, self.paces(), self.speeds(), self._allotted()

        def slowest(sizes: Mapping[int, int]) -> float:
            return max(pace.seconds(sizes.get(worker, 0)) for worker, pace in paces.items())

        if not at_once and slowest(now) > BAND * slowest(before):
            return []
        self._sizes, fastest = {**before, **now}, max(speeds.values())
        return [
            f"worker {worker} gets {size} of {self.plan.total} samples "
            f"({speeds[worker] / fastest:.2g} of the fastest's speed)"
            for worker, size in now.items() if size != before.get(worker)
        ]  # fmt: skip
