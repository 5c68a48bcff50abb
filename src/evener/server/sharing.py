"""Who gets which samples, where each worker has a batch size of its own."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence

from evener.policy.lives import Lives, Stage
from evener.policy.shares import Shares
from evener.policy.stretches import Stretch, Stretches
from evener.policy.synchronous import Sync
from evener.report import Line
from evener.server.batches import only_of_scripts
from evener.server.course import Course
from evener.server.giving import Given
from evener.server.links import Links, Seat
from evener.wire.messages import Push, TooBig

log = logging.getLogger(__name__)


class Sharing:
    """Like `OneEach`, by samples: a worker gets its share, or what is left of the round, or it is parked.

    In sync a round gives out exactly the samples of an update, so that all that is computed is used. Who has ended its
    share while another one is gone computes the rest of it.

    Args:
        finished: updates applied so far.
    """

    def __init__(
        self, links: Links, book: Stretches, lives: Lives, course: Course, finished: Callable[[], int]
    ) -> None:
        self._links, self._book, self._lives, self._course = links, book, lives, course
        self._finished, self._clock = finished, course.setup.clock
        settings = course.settings
        self.shares = Shares(settings.plan)
        self._total, self._rounds = settings.plan.total, isinstance(settings.mode, Sync)
        self._parked: list[int] = []  # released, but no sample is left unless some come back, or a round begins
        self._epoch = 0  # samples in one: a batch has no sample twice
        self._applied = 0  # samples since the last round that was counted

    def begin(self, samples: int) -> None:
        """So many are in an epoch. A run whose updates are of unequal batches ends by samples."""
        settings, book = self._course.settings, self._book.state()
        self._epoch = samples
        if settings.ends_by_samples and settings.epochs is not None:
            skipped = sum(stop - start for start, stop in book.skipped)
            self._book.limit = math.ceil(round(settings.epochs * samples, 6)) + skipped

    def joins(self, seat: Seat, want: int) -> None:
        self._tell(self.shares.joined(seat.worker))

    def forget(self, seat: Seat) -> None:
        self._parked = [worker for worker in self._parked if worker != seat.worker]
        if not self._course.stopping:
            self._tell(self.shares.left(seat.worker))

    def refuses(self, seat: Seat, push: Push) -> str:
        if only_of_scripts(push):
            return "pushed what only the workers of a script push"
        if not seat.may_push(push):
            return f"pushed out of turn: version {push.version}, seq {push.seq}, samples {push.lease} + {push.count}"
        return ""

    def pushed(self, seat: Seat, push: Push) -> None:
        self.shares.took(seat.worker, push.count, push.seconds)

    def taken(self, push: Push) -> list[int]:
        return []

    def applied(self, pushes: Iterable[Push]) -> None:
        """These became an update: a round is over when as many samples were applied as are shared out."""
        self._applied += sum(push.count for push in pushes)
        while self._applied >= self._total:
            self._applied -= self._total
            self._tell(self.shares.round_over())

    def give(self, workers: Sequence[int]) -> list[Given]:
        """Ascending, so that a round in which all are here is shared out in the same way each time."""
        waiting, self._parked = [*workers, *self._parked], []
        given = []
        for worker in sorted(set(waiting)):
            seat = self._links.seats.get(worker)
            if seat is None:
                continue
            stretch = self._take(seat)
            if stretch is not None:
                given.append(Given(seat, stretch[0], count=stretch[1] - stretch[0]))
                continue
            self._parked.append(worker)
            if self._lives.stage(worker) is not Stage.PARKED:
                self._lives.move(worker, Stage.PARKED, self._clock())
        return given

    def recall(self, seat: Seat) -> None:
        """Nobody computes when a round ends: it had no more samples to give out."""

    def drained(self) -> frozenset[int] | None:
        return None

    def too_big(self, seat: Seat, told: TooBig) -> bool:
        """So many samples do not fit into this worker's memory: they go back. False: it was not given these."""
        asked, life = seat.answer, (seat.worker, seat.epoch)
        if not seat.its_turn() or asked is None or (told.lease, told.count) != (asked.lease, asked.count):
            return False
        if self._book.give_back(told.lease, life):
            self._course.setup.ledger.returned(*life, [(told.lease, told.lease + told.count)])
        seat.awaits, seat.whole = 0, True  # of the leader alone
        self._lives.move(seat.worker, Stage.HELD, self._clock())
        bound = self.shares.too_big(seat.worker, told.count)
        self._tell([
            f"{seat.name} has not enough memory for {told.count} samples: from now on it gets at most {bound}; "
            "the rest is computed by whoever is free"
        ])  # fmt: skip
        return True

    def waiting_for(self, waits: str) -> str:
        """Who computes the rest of a round, behind what the policy says; empty where nobody waits."""
        shared = [
            f"worker {owner[0]} computes {stop - start}"
            for start, owner in sorted(self._book.outstanding().items())
            if isinstance(owner, tuple) and self._lives.stage(owner[0]) is Stage.COMPUTING
            for _, stop in [self._book.stretch(start, owner) or (start, start)]
        ]  # fmt: skip
        more = [f"and {len(shared) - 4} more do"] * (len(shared) > 4)
        return ", ".join([waits, *shared[:4], *more]) if waits else ""

    def _take(self, seat: Seat) -> Stretch | None:
        want = min(self.shares.size(seat.worker), self._epoch)
        if self._rounds:
            want = min(want, self._total - self._book.out)
        elif self._course.length and len(self._book.outstanding()) >= self._course.length - self._finished():
            return None  # as many are under way as there are updates left
        return self._book.take((seat.worker, seat.epoch), want) if want > 0 else None

    def _tell(self, sentences: Iterable[str]) -> None:
        for text in sentences:
            log.warning("%s", text)
            self._course.setup.report(Line("ps:0", text))
