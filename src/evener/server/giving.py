"""Who gets which batches, when workers go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evener.policy.leases import Leases
from evener.policy.lives import Lives, Stage
from evener.server.batches import only_of_scripts
from evener.server.links import Links, Seat
from evener.server.shard import Shard
from evener.wire.messages import Push


@dataclass(frozen=True, slots=True)
class Given:
    """A worker that goes on."""

    seat: Seat
    lease: int  # the first that it has in hand; -1: none
    leases: list[int] = field(default_factory=list)  # those that are new in its hand
    drawn: bool = False  # it asked for batches alone
    count: int = 0  # samples, of which `lease` is the first; 0: it is the number of a batch


class Giver(Protocol):
    """Knows what each worker has in hand."""

    def joins(self, seat: Seat, want: int) -> None:
        """A life is ready for its first parameters."""
        ...

    def forget(self, seat: Seat) -> None:
        """A life has ended."""
        ...

    def refuses(self, seat: Seat, push: Push) -> str:
        """Why this push may not be, as the end of a sentence; empty if it may."""
        ...

    def pushed(self, seat: Seat, push: Push) -> None:
        """This push is taken up."""
        ...

    def taken(self, push: Push) -> list[int]:
        """Batches of it that went to others meanwhile, so that it must not become an update."""
        ...

    def give(self, workers: Sequence[int]) -> list[Given]:
        """These go on, and those who waited for a batch: who is to be answered now."""
        ...

    def recall(self, seat: Seat) -> None:
        """What this one computes now will be dropped: what it has in hand goes back at once, so that a straggler
        cannot hold it until the end of the run."""
        ...

    def drained(self) -> frozenset[int] | None:
        """Those who wait for a batch, if none is left in this epoch and all others wait for an update; else None."""
        ...


class OneEach:
    """A recipe's workers: one batch each, and nobody goes on without one."""

    def __init__(self, links: Links, shard: Shard, leases: Leases, lives: Lives, clock: Callable[[], float]) -> None:
        self._links, self._shard, self._leases, self._lives, self._clock = links, shard, leases, lives, clock
        self._parked: list[int] = []  # released, but no lease is left unless somebody leaves

    def joins(self, seat: Seat, want: int) -> None:
        pass

    def forget(self, seat: Seat) -> None:
        self._parked = [worker for worker in self._parked if worker != seat.worker]

    def refuses(self, seat: Seat, push: Push) -> str:
        if only_of_scripts(push):
            return "pushed what only the workers of a script push"
        return "" if seat.may_push(push) else f"pushed out of turn: version {push.version}, seq {push.seq}"

    def pushed(self, seat: Seat, push: Push) -> None:
        pass

    def taken(self, push: Push) -> list[int]:
        return []

    def give(self, workers: Sequence[int]) -> list[Given]:
        """A lease that came back from a worker that left goes to someone who had none."""
        given = self._one_each(workers)
        waiting, self._parked = self._parked, []
        return given + self._one_each(waiting)

    def _one_each(self, workers: Sequence[int]) -> list[Given]:
        given = []
        for worker in workers:
            seat = self._links.seats.get(worker)
            if seat is None:
                continue
            lease = self._leases.take((seat.worker, seat.epoch))
            if lease is not None:
                given.append(Given(seat, lease))
                continue
            self._parked.append(worker)
            if self._lives.stage(worker) is not Stage.PARKED:
                self._lives.move(worker, Stage.PARKED, self._clock())
        return given

    def drained(self) -> frozenset[int] | None:
        """Where the run ends with its batches: those who are parked, if all others have given their gradients."""
        if self._leases.limit is None or self._leases.left:
            return None
        live = [seat for seat in self._links.seats.values() if seat.joined]
        parked = frozenset(self._parked)
        return parked if live and all(seat.whole or seat.worker in parked for seat in live) else None

    def recall(self, seat: Seat) -> None:
        self._leases.give_back(self._lives.lease(seat.worker), (seat.worker, seat.epoch))
