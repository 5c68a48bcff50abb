"""The book of numbered batches: which samples are out, and with whom."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What a checkpoint keeps of the book: all leases below `next_lease` are applied, but for those named here."""

    next_lease: int
    unapplied: tuple[int, ...]  # returned or outstanding, ascending
    skipped: tuple[int, ...] = ()  # given up: below `next_lease`, neither applied nor to be applied, ascending


class Leases:
    """Give out batch numbers so that each one is applied exactly once, whoever leaves on the way.

    An owner is a worker *life*, such as (worker, epoch), so that what a replaced process says late about a lease that
    was issued again changes nothing.

    Args:
        next_lease: the lowest number never issued.
        returned: numbers below it that were issued but not applied; they go out first.
        limit: numbers 0 to limit - 1 exist; None: they never end.
        skipped: numbers that were given up.

    >>> book = Leases(limit=2)
    >>> book.take("a"), book.take("b"), book.take("a"), book.leave("a"), book.take("b")
    (0, 1, None, [0], 0)
    >>> book.state()
    LeaseState(next_lease=2, unapplied=(0, 1), skipped=())
    """

    def __init__(
        self,
        *,
        next_lease: int = 0,
        returned: Iterable[int] = (),
        limit: int | None = None,
        skipped: Iterable[int] = (),
    ) -> None:
        self.next_lease = next_lease
        self.limit = limit
        self._returned = list(returned)  # a heap: the lowest goes out first
        assert len(set(self._returned)) == len(self._returned), "a lease was returned twice"
        assert all(0 <= lease < next_lease for lease in self._returned), "a lease was returned but never issued"
        heapify(self._returned)
        self._outstanding: dict[int, Hashable] = {}
        self._skipped = list(skipped)
        self._avoided: set[int] = set()  # not issued so far, and never to be
        self._passed: list[int] = []
        self.epoch = 0  # leases of one, where a lease of the next is issued only when all of this one are closed

    def fence(self, epoch: int) -> None:
        """Of now on no lease is issued before the epoch before its own, of so many leases, is over. 0: there are none.

        >>> book = Leases()
        >>> book.fence(2)
        >>> book.take("a"), book.take("a"), book.take("a"), book.finish(0, "a"), book.finish(1, "a"), book.turn()
        (0, 1, None, True, True, True)
        """
        self.epoch = epoch
        lowest = min([self.next_lease, *self._returned, *self._outstanding])
        self.limit = (lowest // epoch + 1) * epoch if epoch else 0

    def turn(self) -> bool:
        """Open the next epoch, if this one is over. False: it is not."""
        if not self.epoch or self.limit is None or not self.exhausted:
            return False
        self.limit += self.epoch
        return True

    def unbegin(self) -> None:
        """Of an epoch of which nothing was applied nothing was ever issued: its workers only saw that it was there."""
        begin = (self.limit or 0) - self.epoch
        if self.epoch and not self._outstanding and sorted(self._returned) == list(range(begin, self.next_lease)):
            self.next_lease, self._returned = begin, []

    def epoch_of(self, lease: int) -> int:
        """Of a fenced book, counted from 0; -1 where there are no epochs."""
        return lease // self.epoch if self.epoch and lease >= 0 else -1

    @property
    def left(self) -> int:
        """Leases that can be issued now, of a book with a limit."""
        return len(self._returned) + max(0, (self.limit or 0) - self.next_lease)

    @property
    def exhausted(self) -> bool:
        """Whether every lease is applied: nothing to issue, nothing out that could come back."""
        return self._ended() and not self._returned and not self._outstanding

    def take(self, owner: Hashable) -> int | None:
        """Issue the lowest lease that nobody holds. None: there is none now, though an outstanding one may return."""
        if self._returned:
            lease = heappop(self._returned)
        elif self._ended():
            return None
        else:
            lease = self.next_lease
            self.next_lease += 1
            if lease in self._avoided:
                self._avoided.discard(lease)
                self._passed.append(lease)
                self._skip(lease)
                return self.take(owner)
        self._outstanding[lease] = owner
        return lease

    def holds(self, lease: int, owner: Hashable) -> bool:
        """Whether this owner may still give something for it."""
        return self._holds(lease, owner)

    def close(self, lease: int, owner: Hashable) -> bool:
        """Give a lease up: it is not issued again, and another one comes in its place."""
        if not self.finish(lease, owner):
            return False
        self._skip(lease)
        return True

    def avoid(self, lease: int) -> None:
        """This lease, which nobody holds, is not to be issued."""
        if lease in self._returned:
            self._returned.remove(lease)
            heapify(self._returned)
            self._skip(lease)
            self._passed.append(lease)
        elif lease >= self.next_lease:
            self._avoided.add(lease)

    def passed(self) -> list[int]:
        """Leases to be avoided that were passed since this was asked last."""
        passed, self._passed = self._passed, []
        return passed

    def _skip(self, lease: int) -> None:
        self._skipped.append(lease)
        if self.limit is not None and not self.epoch:  # an epoch does not grow because a lease was given up
            self.limit += 1

    def finish(self, lease: int, owner: Hashable) -> bool:
        """Close a lease whose gradient was applied. False, and nothing done, unless this owner holds it now."""
        if not self._holds(lease, owner):
            return False
        del self._outstanding[lease]
        return True

    def give_back(self, lease: int, owner: Hashable) -> bool:
        """Return a lease whose gradient was dropped. False, and nothing done, unless this owner holds it now."""
        if not self.finish(lease, owner):
            return False
        heappush(self._returned, lease)
        return True

    def leave(self, owner: Hashable) -> list[int]:
        """Return all leases of an owner that is gone; they are listed in ascending order."""
        leases = sorted(lease for lease, holder in self._outstanding.items() if holder == owner)
        for lease in leases:
            self.give_back(lease, owner)
        return leases

    def outstanding(self) -> dict[int, Hashable]:
        """Lease -> its owner, for the leases that are out now."""
        return dict(self._outstanding)

    def state(self) -> LeaseState:
        """What to store: a book restored from it issues exactly the leases that were not applied."""
        # Who held a lease is not stored: the parameters restored beside this state lack its gradient in any case.
        return LeaseState(
            self.next_lease, tuple(sorted([*self._returned, *self._outstanding])), tuple(sorted(self._skipped))
        )

    def _ended(self) -> bool:
        return self.limit is not None and self.next_lease >= self.limit

    def _holds(self, lease: int, owner: Hashable) -> bool:
        return lease in self._outstanding and self._outstanding[lease] == owner
