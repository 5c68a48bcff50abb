"""Several shards, one decision: shard 0 decides over whole gradients, the others do the same in the same order.

TensorFlow lets each variable average other workers' gradients (SEMANTICS S8, S11); here every update is the mean of the
same gradients on every shard, in every mode, so a version means the same cut through the model everywhere.
"""

from __future__ import annotations

Key = tuple[int, int, int]  # worker, epoch, seq


class Whole:
    """Which shards hold which push. A push counts when it lies on all of them.

    >>> whole = Whole(shards=2)
    >>> whole.held((0, 1, 1), shard=1), whole.held((0, 1, 1), shard=0)
    (False, True)
    """

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._holders: dict[Key, set[int]] = {}

    def held(self, key: Key, shard: int) -> bool:
        """Note that this shard holds the push; True when it now lies on every shard."""
        holders = self._holders.setdefault(key, set())
        holders.add(shard)
        if len(holders) < self._shards:
            return False
        del self._holders[key]
        return True

    def forget(self, worker: int, epoch: int) -> list[Key]:
        """The pushes of a worker's life that never became whole; they are not awaited any more."""
        keys = sorted(key for key in self._holders if key[:2] == (worker, epoch))
        for key in keys:
            del self._holders[key]
        return keys

    def waiting_for(self) -> str:
        """One sentence naming the shards that are late; empty when none is."""
        late = sorted({shard for holders in self._holders.values() for shard in set(range(self._shards)) - holders})
        if not late:
            return ""
        count = len(self._holders)
        what = "1 gradient is" if count == 1 else f"{count} gradients are"
        return f"{what} not yet on " + ", ".join(f"ps:{shard}" for shard in late)
