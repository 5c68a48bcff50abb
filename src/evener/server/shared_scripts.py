"""Workers with a loop of their own and a batch size of their own: one stretch of samples each, and a fence between two
epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evener import errors
from evener.ledger.lines import Lease
from evener.policy.lives import Lives, Stage
from evener.policy.stretches import Stretches
from evener.server.batches import named
from evener.server.course import Course
from evener.server.giving import Given
from evener.server.links import Links, Seat
from evener.server.sharing import Sharing
from evener.wire.messages import Draw, Push


class SharedScripts(Sharing):
    """Like `Scripts`, by samples, and nothing ahead: a worker that has pushed goes on when there is a stretch for it.

    Who waits in its `step` is parked, who waits for its loader is idle.
    """

    def __init__(
        self, links: Links, book: Stretches, lives: Lives, course: Course, finished: Callable[[], int]
    ) -> None:
        super().__init__(links, book, lives, course, finished)
        self._idle: set[int] = set()
        self._hands: dict[tuple[int, int], int] = {}  # life -> the first sample of its stretch
        self._epochs: dict[tuple[int, int], int] = {}  # life -> the epoch of its last gradient
        self._closed: list[Lease] = []

    def begin(self, samples: int) -> None:
        super().begin(samples)
        self._book.fence(samples)

    @property
    def idle(self) -> list[Seat]:
        """Those who wait for a batch."""
        return [self._links.seats[worker] for worker in sorted(self._idle)]

    def forget(self, seat: Seat) -> None:
        self._idle.discard(seat.worker)
        self._hands.pop((seat.worker, seat.epoch), None)
        self._epochs.pop((seat.worker, seat.epoch), None)
        super().forget(seat)

    def refuses(self, seat: Seat, push: Push) -> str:
        if not seat.its_turn() or seat.worker in self._idle or push.version != seat.version:
            return f"pushed out of turn: version {push.version}, seq {push.seq}"
        if push.group:
            return "has several optimizers, which does not go with batches of their own size so far"
        life = (seat.worker, seat.epoch)
        stretch = self._book.stretch(self._hands.get(life, -1), life)
        if named(push) == [] and push.count == 0:
            return (
                "took a step without a batch, or accumulates: with --batch-sizes and --batch-by-speed each step is "
                "of one batch, since these say how many samples it has"
            )
        if stretch is None or named(push) != [stretch[0]] or push.count != stretch[1] - stretch[0]:
            return f"names {push.count} samples from {push.lease} on, and has {stretch or 'none'} in hand"
        return "" if push.examples == push.count else f"says {push.examples} samples, and has {push.count}"

    def pushed(self, seat: Seat, push: Push) -> None:
        life = (seat.worker, seat.epoch)
        self._epochs[life] = self._book.epoch_of(self._hands.pop(life))
        super().pushed(seat, push)

    def give(self, workers: Sequence[int]) -> list[Given]:
        """Where an epoch is over, the next one begins."""
        self._book.turn()
        given = self._given(workers)
        while not given and self._book.turn():  # all that was left of one was given up
            given = self._given([])
        return given

    def _given(self, workers: Sequence[int]) -> list[Given]:
        given = [Given(one.seat, one.lease, [one.lease], count=one.count) for one in super().give(workers)]
        for seat in self.idle:
            if (stretch := self._take(seat)) is not None:
                self._idle.discard(seat.worker)
                start, stop = stretch
                given.append(Given(seat, start, [start], drawn=True, count=stop - start))
        for one in given:
            self._hands[one.seat.worker, one.seat.epoch] = one.lease
        return given

    def draw(self, seat: Seat, draw: Draw) -> Given | None:
        """Nothing more than it has; if it waits, it is given a stretch when there is one. None: it waits.

        Raises:
            ProtocolError: it is not its turn, or it gives up what it has not.
        """
        life = (seat.worker, seat.epoch)
        if not seat.its_turn() or seat.worker in self._idle:
            raise errors.ProtocolError(f"{seat.name} drew out of turn.")
        for start in draw.unused:
            stretch = self._book.stretch(start, life)
            if stretch is None or self._hands.get(life) != start:
                raise errors.ProtocolError(f"{seat.name} gives up a stretch that it has not: {start}.")
            self._book.close(start, life)
            self._closed.append(stretch)
            del self._hands[life]
        if not draw.wait:
            return Given(seat, self._hands.get(life, -1), [], drawn=True)
        if life in self._hands:
            raise errors.ProtocolError(f"{seat.name} waits for a batch, and has {self._hands[life]} in hand.")
        self._idle.add(seat.worker)
        self._lives.move(seat.worker, Stage.IDLE, self._clock())
        return None

    def closed(self) -> list[Lease]:
        """Stretches that were given up since this was asked last."""
        closed, self._closed = self._closed, []
        return closed

    def begins(self, seat: Seat) -> bool:
        """Whether it begins an epoch, not its first one."""
        life = (seat.worker, seat.epoch)
        before = self._epochs.get(life, -1)
        return 0 <= before < self._book.epoch_of(self._hands.get(life, -1))

    def stopped(self) -> list[Seat]:
        """The run is over: nobody waits for a batch any more. Those who did."""
        seats = self.idle
        self._idle.clear()
        return seats

    def drained(self) -> frozenset[int] | None:
        """All of this epoch is given out, and everybody waits: the rest is an update of fewer samples."""
        if self._book.left:
            return None
        live = [seat for seat in self._links.seats.values() if seat.joined]
        if not live or not all(seat.whole or seat.worker in self._idle for seat in live):
            return None
        return frozenset(self._idle)

    def finishing(self, others: str) -> str:
        """Who has finished an epoch, and waits for the rest of it; empty if nobody does."""
        who = [seat.name for seat in self.idle]
        if not who:
            return ""
        return f"{', '.join(who[:4])} for a batch: {others or 'the rest of the epoch is computed'}"
