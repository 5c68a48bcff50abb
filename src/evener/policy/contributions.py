"""Which workers give gradients that are used, and which work for nothing."""

from __future__ import annotations

#: Gradients in a row that came too late, after which people are told.
IN_A_ROW = 5


class Contributions:
    """Counts what came too late, worker by worker.

    >>> counts = Contributions()
    >>> [counts.dropped(3, 30) for _ in range(6)].index(30)
    4
    """

    def __init__(self) -> None:
        self._in_a_row: dict[int, int] = {}
        self._told: set[int] = set()

    def applied(self, worker: int) -> None:
        """A gradient of it was used."""
        self._in_a_row.pop(worker, None)

    def dropped(self, worker: int, delay: int) -> int:
        """A gradient of it came so many updates late, and was dropped.

        Returns:
            The delay, if this is the moment to tell people: the fifth in a row, once a worker. Else 0.
        """
        count = self._in_a_row[worker] = self._in_a_row.get(worker, 0) + 1
        if count < IN_A_ROW or worker in self._told:
            return 0
        self._told.add(worker)
        return delay


def nothing(worker: int, delay: int, limit: float, *, may_raise: bool) -> str:
    """The sentence for people.

    Args:
        limit: updates that a gradient may be late, this number not included.
        may_raise: the mode has an option for it.
    """
    fix = f"raise --max-delay to {delay + 1}, or stop it" if may_raise else "stop it, or try --mode ringmaster"
    return (
        f"warning: worker:{worker} contributes nothing: its last {IN_A_ROW} gradients came too late, the newest by "
        f"{delay} updates, the limit is {limit:g}; {fix}"
    )
