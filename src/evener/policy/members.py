"""Who may push: workers live more than once, and requests arrive more than once.

Two rules keep every gradient applied at most once. An *epoch* numbers the lives of one worker index: a process that
was replaced is fenced when it wakes. A *generation* numbers the lives of the server and *seq* the pushes of one
worker life: a resend is recognised, and a gradient computed on parameters that a restart rolled back is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType

from evener.errors import DuplicateTask, Fenced, ProtocolError

_NOBODY: Mapping[int, int] = MappingProxyType({})
_NO_ONE: Mapping[int, str] = MappingProxyType({})
_NOTHING: Mapping[int, tuple[int, int]] = MappingProxyType({})


class Verdict(Enum):
    """What to do with a push whose sender is who it claims to be."""

    FRESH = "fresh"  # take it up, then `record` it
    DUPLICATE = "duplicate"  # acknowledge it again, apply nothing
    STALE = "stale"  # computed on parameters that were rolled back: count it, apply nothing


class Members:
    """The worker lives that were granted, and the last push taken up from each.

    `epochs` must be on disk before a grant is answered and never rolls back, else two processes could hold one
    epoch. `seqs` is saved with the parameters and rolls back with them: a push that the parameters lost may come again.

    Args:
        generation: the life of this server; greater than that of any life before it.
        epochs: worker -> its newest epoch, as stored. Epochs count from 1; 0 means none.
        holders: worker -> the process to which that epoch was granted, as stored.
        seqs: worker -> (epoch, seq) of its last push that the restored parameters contain.
    """

    def __init__(
        self,
        *,
        generation: int,
        epochs: Mapping[int, int] = _NOBODY,
        holders: Mapping[int, str] = _NO_ONE,
        seqs: Mapping[int, tuple[int, int]] = _NOTHING,
    ) -> None:
        self.generation = generation
        self.epochs = dict(epochs)
        self.holders = dict(holders)
        self.seqs = dict(seqs)
        for worker, (epoch, _) in self.seqs.items():
            assert epoch <= self.epochs.get(worker, 0), f"worker {worker} pushed in epoch {epoch}, never granted"

    def grant(self, worker: int, epoch: int, *, alive: bool, process: str = "") -> int:
        """Answer a hello: the epoch under which this process may push.

        Args:
            worker: the index that the process asks for.
            epoch: 0 from a new process; from a process that reconnects, the epoch it was granted. Its new link is
                a new life too: what the old link still held is dropped, so nothing has to be told apart.
            alive: whether a live peer holds this index now; only the caller can know.
            process: a name that no other process has; empty: not told. The one that holds the newest epoch is not
                fenced by it, nor taken for a second one: it says an older epoch when the answer to its last hello
                was lost, with its link or with the server.

        Raises:
            DuplicateTask: a new process asks for an index whose holder is alive.
            Fenced: the process was replaced while it was away.
            ProtocolError: it claims an epoch that was never granted.
        """
        current = self.epochs.get(worker, 0)
        known = process != "" and self.holders.get(worker) == process
        if epoch != 0 and not (known and 0 < epoch <= current):
            self._identify(worker, epoch)
        if epoch == 0 and alive and not known:
            raise DuplicateTask(
                f"worker:{worker} is already running (epoch {current}); a new process asked to be worker:{worker} too.",
                why="one index is one worker: two would push under one name.",
                fix="stop the other process, or start this one with a free index.",
            )
        self.epochs[worker], self.holders[worker] = current + 1, process
        return current + 1

    def check(self, worker: int, epoch: int, generation: int, seq: int) -> Verdict:
        """Judge a push without taking it up.

        Raises:
            Fenced: the sender was replaced by a newer process.
            ProtocolError: the sender never said hello, or claims an epoch that was never granted.
        """
        self._identify(worker, epoch)
        if generation != self.generation:
            return Verdict.STALE
        return Verdict.FRESH if seq > self._last_seq(worker) else Verdict.DUPLICATE

    def record(self, worker: int, epoch: int, seq: int) -> None:
        """Remember a fresh push as taken up; whoever sends it again is told that it is a duplicate."""
        assert epoch > 0 and epoch == self.epochs.get(worker), f"epoch {epoch} of worker {worker} is not current"
        assert seq > self._last_seq(worker), f"push {seq} of worker {worker} was taken up before"
        self.seqs[worker] = (epoch, seq)

    def _last_seq(self, worker: int) -> int:
        epoch, seq = self.seqs.get(worker, (0, 0))
        return seq if epoch == self.epochs.get(worker, 0) else 0  # each life counts its pushes from 1

    def _identify(self, worker: int, epoch: int) -> None:
        current = self.epochs.get(worker, 0)
        if epoch == 0:
            raise ProtocolError(
                f"worker {worker} pushed before its hello: it has epoch 0, the newest granted is {current}.",
                why="a push carries the epoch that the answer to the hello granted.",
                fix="say hello first.",
            )
        # Looked at before "replaced", so that a forged number never makes a process believe it was.
        if not 0 < epoch <= current:
            raise ProtocolError(
                f"epoch {epoch} of worker {worker} was never granted; the newest is {current}.",
                why="only this server grants epochs, and it keeps them on disk.",
                fix="check that the task talks to the cluster it was started for, then restart the task.",
            )
        if epoch < current:
            raise Fenced(
                f"worker:{worker} was replaced by epoch {current}; this process has epoch {epoch}.",
                why="a newer process took this index while this one did not answer.",
                fix="let this process end; the newer one goes on.",
            )


def names(workers: Iterable[int]) -> str:
    """Name workers as a sentence for people does; a long list is cut.

    >>> names([4]), names([5, 0, 2])
    ('worker 4', 'workers 0, 2 and 5')
    """
    words = [str(worker) for worker in sorted(workers)]
    if len(words) > 8:
        words[7:] = [f"{len(words) - 7} more"]
    if len(words) == 1:
        return f"worker {words[0]}"
    return f"workers {', '.join(words[:-1])} and {words[-1]}"
