"""Which batches a gradient is of, for the book, the ledger and people."""

from __future__ import annotations

from evener.ledger.lines import Entry, Lease
from evener.wire.messages import Push


def named(push: Push) -> list[int]:
    """The leases that it is of; none where its batches have no numbers, or another gradient was of them."""
    return [lease for lease in (push.lease, *push.more) if lease >= 0]


def written(push: Push) -> list[Lease]:
    """The same as the ledger names them: samples by the first and the one after the last."""
    return [(push.lease, push.lease + push.count)] if push.count else list(named(push))


def only_of_scripts(push: Push, *, several: bool = False) -> bool:
    """Whether it says what a recipe's worker has no reason to say. `several`: one that has several batches in hand."""
    said = push.group or push.settings or push.script or push.spread
    return push.loss is None or bool(said or (push.more and not several))


def entries(push: Push) -> list[Entry]:
    """What the ledger says of it: an entry a lease, or one without."""
    worker, epoch = push.identity.worker, push.identity.epoch
    return [(lease, worker, epoch, push.seq) for lease in written(push) or [-1]]
