"""The batches that a worker has in hand: given to it, on their way through its loader, and used since its last step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class Hand:
    """Leases in the order in which they came.

    A lease is *in hand* until a step names it: first it waits to be loaded, then it is being loaded, then the program
    has its batch.

    >>> hand = Hand()
    >>> hand.add([4, 5]); hand.load(), hand.delivered(4), hand.take(), hand.count
    (4, True, [4], 1)
    """

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()
        self._loading: deque[int] = deque()
        self._used: list[int] = []
        self._most = 1  # batches of one step
        self._sizes: dict[int, int] = {}  # samples of those that are stretches of them

    @property
    def count(self) -> int:
        """Of all that are in hand."""
        return len(self._waiting) + len(self._loading) + len(self._used)

    @property
    def most(self) -> int:
        """The most batches that a step has used so far."""
        return max(self._most, len(self._used))

    @property
    def first(self) -> int:
        """The next that waits to be loaded; -1 if none does."""
        return self._waiting[0] if self._waiting else -1

    @property
    def loading(self) -> bool:
        return bool(self._loading)

    def add(self, leases: Sequence[int], size: int = 0) -> None:
        """`size`: they are stretches of so many samples."""
        self._waiting.extend(leases)
        if size:
            self._sizes = dict.fromkeys(leases, size) or self._sizes

    def size(self, lease: int) -> int:
        """Samples of a lease that is a stretch of them; 0: it is the number of a batch."""
        return self._sizes.get(lease, 0)

    def sizes(self, leases: Sequence[int]) -> list[int]:
        """Of several; none where they are numbers of batches."""
        return [self._sizes[lease] for lease in leases if lease in self._sizes]

    def clear(self) -> None:
        """They were taken away: the life to which they were given has ended."""
        self._waiting.clear()
        self._loading.clear()
        self._used.clear()

    def load(self) -> int:
        """Let the next one be loaded."""
        lease = self._waiting.popleft()
        self._loading.append(lease)
        return lease

    def delivered(self, lease: int) -> bool:
        """Its batch is here; False: it is not this worker's any more."""
        if lease not in self._loading:
            return False
        self._loading.remove(lease)
        self._used.append(lease)
        return True

    def unload(self) -> None:
        """The loader has stopped: what it was loading waits again."""
        self._waiting.extendleft(reversed(self._loading))
        self._loading.clear()

    def put_back(self) -> None:
        """The batches used since the last step wait again, before all others."""
        self._waiting.extendleft(reversed(self._used))
        self._used.clear()

    def take(self) -> list[int]:
        """The batches used since the last step; they are not in hand any more."""
        used, self._used = self._used, []
        self._most = max(self._most, len(used))
        return used
