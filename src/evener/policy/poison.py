"""What to do about a batch whose gradient must not become an update: it is not finite, or longer than is allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum

#: So many batches in a row that gave no update are no bad batches: the parameters or the learning rate are wrong.
IN_A_ROW = 10


class Answer(Enum):
    """To one such gradient."""

    STOP = "stop"  # the run ends and says why
    AGAIN = "again"  # its batch is tried once more
    CLOSE = "close"  # its batch is given up, by name
    BACK = "back"  # everything goes back to the last checkpoint, and on without this batch


class Poison:
    """Remembers which batches gave such gradients.

    >>> poison = Poison("skip")
    >>> poison.judge(41), poison.judge(41)
    (<Answer.AGAIN: 'again'>, <Answer.CLOSE: 'close'>)
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._tries: Counter[int] = Counter()
        self._row = 0  # batches given up since the last update

    def judge(self, lease: int) -> Answer:
        """A gradient of this batch was refused."""
        if self._policy == "stop" or self._row >= IN_A_ROW:
            return Answer.STOP
        self._tries[lease] += 1
        if self._policy == "skip" and self._tries[lease] == 1:
            return Answer.AGAIN
        self._row += 1
        del self._tries[lease]
        return Answer.BACK if self._policy == "rollback" else Answer.CLOSE

    def judge_all(self, leases: Sequence[int], size: int = 1) -> dict[int, Answer]:
        """Gradients of so many batches each were refused: all of one share its fate.

        >>> Poison("stop").judge_all([3, 4], 2)
        {3: <Answer.STOP: 'stop'>, 4: <Answer.STOP: 'stop'>}
        """
        answers: dict[int, Answer] = {}
        for at in range(0, len(leases), size):
            answers |= dict.fromkeys(leases[at : at + size], self.judge(leases[at]))
        return answers

    def exploded(self) -> Answer:
        """An update of finite gradients has made a parameter infinite: it cannot be taken back but by a checkpoint."""
        if self._policy == "stop" or self._row >= IN_A_ROW:
            return Answer.STOP
        self._row += 1
        return Answer.BACK

    def applied(self) -> None:
        """An update was made."""
        self._row = 0
