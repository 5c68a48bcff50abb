"""Leases ahead: each worker of a script has some in hand, which it will name in later pushes.

What a worker has in hand it counts itself, too. So a lease that was taken from it, since it computed on an old version,
stays in its hand as void: what it gives for it later is not taken.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from evener.policy.leases import Leases

#: Leases that one may take of a book without an end.
ENDLESS = 1 << 20


@dataclass(slots=True)
class WorkerHand:
    """Of one worker's life."""

    leases: list[int] = field(default_factory=list)  # not named so far, in the order in which they were given
    want: int = 1
    epoch: int = -1  # in which it has given a gradient, or began
    given: int = -1  # of the last lease that it was told


class Hands:
    """Deals the leases of a book.

    Args:
        book: the leases.
        ahead: a worker that goes on may have several. Not where many gradients are dropped for their age: their
            leases go to others at once, and what lies in a hand is late for nothing.

    >>> hands = Hands(Leases(limit=8), ahead=True)
    >>> hands.enter("a", 2), hands.enter("b", 2)
    (None, None)
    >>> hands.deal(["a", "b"], live=2)
    {'a': [0, 2], 'b': [1, 3]}
    """

    def __init__(self, book: Leases, *, ahead: bool) -> None:
        self._book, self._ahead = book, ahead
        self._hands: dict[Hashable, WorkerHand] = {}

    def enter(self, owner: Hashable, want: int) -> None:
        """A life begins, with an empty hand."""
        self._hands[owner] = WorkerHand(want=want)

    def leave(self, owner: Hashable) -> None:
        """A life has ended; the book is told by others."""
        self._hands.pop(owner, None)

    def want(self, owner: Hashable, want: int) -> None:
        """So many it would have in hand."""
        self._hands[owner].want = want

    def of(self, owner: Hashable) -> list[int]:
        """What it has in hand, as it knows."""
        return list(self._hands[owner].leases)

    def has(self, owner: Hashable, leases: Sequence[int]) -> bool:
        """Whether all of these are in its hand, each once."""
        mine = set(self._hands[owner].leases)
        return len(set(leases)) == len(leases) and mine.issuperset(leases)

    def void(self, owner: Hashable, leases: Iterable[int]) -> list[int]:
        """Those of these that were taken from it."""
        return [lease for lease in leases if not self._book.holds(lease, owner)]

    def name(self, owner: Hashable, leases: Sequence[int]) -> None:
        """It has given its gradient of these, or will not give one: they leave its hand."""
        hand = self._hands[owner]
        named = set(leases)
        hand.leases = [lease for lease in hand.leases if lease not in named]
        hand.epoch = max([hand.epoch, *map(self._book.epoch_of, leases)])

    def revoke(self, owner: Hashable) -> list[int]:
        """What it has in hand goes back to the pool. It does not know."""
        return [lease for lease in self._hands[owner].leases if self._book.give_back(lease, owner)]

    def take_over(self, owner: Hashable, other: Hashable) -> list[int]:
        """As many as the other one has in hand are this one's, who is the same worker; the other one is no more."""
        count = len(self.revoke(other))
        self.leave(other)
        return self._fill({owner: count})[owner]

    def told(self, owner: Hashable, leases: Sequence[int]) -> list[int]:
        """It hears of these, which it was given."""
        if leases:
            self._hands[owner].given = self._book.epoch_of(leases[-1])
        return list(leases)

    def behind(self, owner: Hashable) -> bool:
        """Whether an epoch has begun since it was told of a lease: it may lack what others made of the last one."""
        return 0 <= self._hands[owner].given < self._book.epoch_of((self._book.limit or 0) - 1)

    def begins(self, owner: Hashable) -> bool:
        """Whether the first in its hand is of an epoch in which it has given nothing, as it did in another one."""
        hand = self._hands[owner]
        epoch = self._book.epoch_of(hand.leases[0]) if hand.leases else -1
        if hand.epoch < 0:
            hand.epoch = epoch
        return epoch > hand.epoch

    def deal(self, owners: Sequence[Hashable], live: int, *, most: int | None = None) -> dict[Hashable, list[int]]:
        """Fill their hands: first one lease each, in this order, then the second each, and so on.

        Args:
            live: workers among whom the rest of an epoch is shared.
            most: leases in one hand; None: as many as it wants.
        """
        limit = self._share(live) if self._ahead else 1
        limit = limit if most is None else min(limit, most)
        return self._fill({owner: min(self._hands[owner].want, limit) for owner in owners})

    def deal_groups(
        self, owners: Sequence[Hashable], live: int, size: int, slow: Collection[Hashable] = ()
    ) -> dict[Hashable, list[int]]:
        """The same by whole groups of leases, of a book in which there are as many of them as are needed: first a
        group each, then the second each, and so on.

        Args:
            slow: those of them who get nothing ahead, since others would wait for it at the end.

        >>> hands = Hands(Leases(limit=9), ahead=True)
        >>> hands.enter("a", 4), hands.enter("b", 2)
        (None, None)
        >>> hands.deal_groups(["a", "b"], live=1, size=2)
        {'a': [0, 1, 4, 5], 'b': [2, 3]}
        """
        share = max(size, self._share(live) // size * size) if self._ahead else size
        given: dict[Hashable, list[int]] = {owner: [] for owner in owners}
        aims = {owner: size if owner in slow else min(max(self._hands[owner].want, size), share) for owner in owners}
        for level in range(size, max(aims.values(), default=0) + 1, size):
            for owner in owners:
                hand = self._hands[owner].leases
                if len(hand) < level <= aims[owner]:
                    if self._book.limit is not None and self._book.left < size:
                        return given
                    for _ in range(size):
                        lease = self._take(owner, hand)
                        assert lease is not None, "a group was there"
                        hand.append(lease)
                        given[owner].append(lease)
        return given

    def draw(self, owner: Hashable, want: int, live: int) -> list[int]:
        """More for a hand of which much may be used already: it names all at once, when its step is whole."""
        hand = self._hands[owner]
        hand.want = want
        has = len(hand.leases)
        return self._fill({owner: has + min(want - has, self._share(live))})[owner]

    def draw_alike(self, owner: Hashable, want: int, named: Mapping[Hashable, int]) -> dict[Hashable, list[int]]:
        """The same for everyone at once, so that who asks first, or has given its gradient already, gets no other ones.

        Args:
            named: everyone, and how many leases each has named since all went on together.

        >>> hands = Hands(Leases(limit=99), ahead=True)
        >>> hands.enter("a", 1), hands.enter("b", 1)
        (None, None)
        >>> hands.draw_alike("b", 2, {"a": 0, "b": 0})
        {'a': [0, 2], 'b': [1, 3]}
        """
        self._hands[owner].want = want
        return self._fill({one: want - count for one, count in named.items()})

    def _fill(self, aims: Mapping[Hashable, int]) -> dict[Hashable, list[int]]:
        """First one lease each, in this order, then the second each, until each has as many as it is to have."""
        given: dict[Hashable, list[int]] = {owner: [] for owner in aims}
        for level in range(1, max(aims.values(), default=0) + 1):
            for owner, aim in aims.items():
                hand = self._hands[owner].leases
                if len(hand) < min(level, aim):
                    lease = self._take(owner, hand)
                    if lease is None:
                        return given
                    hand.append(lease)
                    given[owner].append(lease)
        return given

    def _take(self, owner: Hashable, hand: Sequence[int]) -> int | None:
        """One that it has not in hand; a void one that comes back to it is its own again, and nothing new."""
        while (lease := self._book.take(owner)) is not None and lease in hand:
            pass
        return lease

    def _share(self, live: int) -> int:
        """Near the end of an epoch one worker does not take the rest ahead, while others have nothing to do."""
        if self._book.limit is None:
            return ENDLESS
        return max(1, -(-self._book.left // (2 * max(1, live))))

    def check(self) -> None:
        """What is always true, for tests: what lies in two hands is void in one of them."""
        owned = [
            (lease, owner) for owner, hand in self._hands.items() for lease in hand.leases
            if self._book.holds(lease, owner)
        ]  # fmt: skip
        assert len({lease for lease, _ in owned}) == len(owned), f"a lease lies in two hands: {owned}"
