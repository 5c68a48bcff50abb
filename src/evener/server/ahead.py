"""A recipe's workers that have several batches in hand: those of one gradient, and more that their loaders prepare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from evener.policy.hands import Hands
from evener.policy.leases import Leases
from evener.policy.lives import Lives, Stage
from evener.server.batches import named, only_of_scripts
from evener.server.giving import Given
from evener.server.links import Links, Seat
from evener.server.shard import Shard
from evener.settings import Settings
from evener.wire.messages import Push

#: A worker so many times slower than another one counts as that; and so many gradients of each are not near the end.
NEAR = 64.0


class Ahead:
    """Like `OneEach`, by whole groups: a worker has all batches of its gradient, or it is parked.

    Every update takes whole groups, so there is no last, incomplete one. It may reach into the next epoch.
    """

    def __init__(  # noqa: PLR0913 - what it looks at, each once
        self,
        links: Links,
        shard: Shard,
        leases: Leases,
        *,
        lives: Lives,
        clock: Callable[[], float],
        settings: Settings,
    ) -> None:
        self._links, self._shard, self._lives, self._clock = links, shard, lives, clock
        self._size, self._together = settings.batches, settings.terms.together
        self._leases, self._workers = leases, settings.workers
        self._in_flight = settings.terms.in_flight
        self._hands = Hands(leases, ahead=not settings.terms.drops)
        self._parked: list[int] = []  # released, but too few leases are left unless some come back

    def joins(self, seat: Seat, want: int) -> None:
        """In lockstep all begin with those of one gradient: what is ahead is shared out when all go on together."""
        self._hands.enter(_life(seat), self._size if self._together else want)

    def forget(self, seat: Seat) -> None:
        self._parked = [worker for worker in self._parked if worker != seat.worker]
        self._hands.leave(_life(seat))

    def refuses(self, seat: Seat, push: Push) -> str:
        if only_of_scripts(push, several=True):
            return "pushed what only the workers of a script push"
        first = self._hands.of(_life(seat))[: self._size]
        if not seat.may_push(push, in_flight=self._in_flight) or named(push) != first:
            return f"pushed out of turn: version {push.version}, seq {push.seq}, leases {named(push)}"
        return ""

    def pushed(self, seat: Seat, push: Push) -> None:
        self._hands.name(_life(seat), named(push))
        self._hands.want(_life(seat), push.want)

    def taken(self, push: Push) -> list[int]:
        return self._hands.void((push.identity.worker, push.identity.epoch), named(push))

    def give(self, workers: Sequence[int]) -> list[Given]:
        seats = [seat for worker in [*workers, *self._parked] if (seat := self._links.seats.get(worker)) is not None]
        live = sum(seat.joined for seat in self._links.seats.values())
        if self._together:
            live = max(live, self._workers)  # a round needs one of each, also of those who are not here yet
        owners = [_life(seat) for seat in seats]
        new = self._hands.deal_groups(owners, live, self._size, self._slow(seats, live))
        self._parked, given = [], []
        for seat in seats:
            hand = self._hands.of(_life(seat))
            if len(hand) >= self._size:
                given.append(Given(seat, hand[0], new[_life(seat)]))
                continue
            self._parked.append(seat.worker)
            if self._lives.stage(seat.worker) is not Stage.PARKED:
                self._lives.move(seat.worker, Stage.PARKED, self._clock())
        return given

    def recall(self, seat: Seat) -> None:
        self._hands.revoke(_life(seat))

    def _slow(self, seats: Sequence[Seat], live: int) -> list[tuple[int, int]]:
        """Of these, those in whose time for two gradients all others could do what is left: the run would end later
        by what they have ahead. Looked at near the end alone."""
        if self._leases.limit is None or self._together or self._leases.left > NEAR * live * self._size:
            return []
        times = {worker: median(took) for worker, took in self._lives.times().items() if took}
        slow = []
        for seat in seats:
            if mine := times.get(seat.worker):
                done = 2 * sum(mine / max(other, mine / NEAR) for other in times.values())
                if done > self._leases.left // self._size:
                    slow.append(_life(seat))
        return slow

    def drained(self) -> frozenset[int] | None:
        """As `OneEach`: those who are parked, if no group is left and all others have given their gradients."""
        if self._leases.limit is None or self._leases.left >= self._size:
            return None
        live = [seat for seat in self._links.seats.values() if seat.joined]
        parked = frozenset(self._parked)
        return parked if parked and live and all(seat.whole or seat.worker in parked for seat in live) else None


def _life(seat: Seat) -> tuple[int, int]:
    return (seat.worker, seat.epoch)
