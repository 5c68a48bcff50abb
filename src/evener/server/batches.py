"""Which batches a gradient is of, for the book, the ledger and people."""

from __future__ import annotations

from evener.ledger.lines import Entry
from evener.wire.messages import Push


def named(push: Push) -> list[int]:
    """The leases that it is of; none where its batches have no numbers, or another gradient was of them."""
    return [lease for lease in (push.lease, *push.more) if lease >= 0]


def only_of_scripts(push: Push) -> bool:
    """Whether it says what a recipe's worker has no reason to say."""
    return push.loss is None or bool(push.more or push.group or push.settings or push.script or push.spread)


def entries(push: Push) -> list[Entry]:
    """What the ledger says of it: an entry a lease, or one without."""
    worker, epoch = push.identity.worker, push.identity.epoch
    return [(lease, worker, epoch, push.seq) for lease in named(push) or [-1]]


def of_epoch(lease: int, batches: int) -> str:
    """
    >>> of_epoch(17, batches=13)
    'epoch 2, batch 5 of 13'
    """
    return f"epoch {lease // batches + 1}, batch {lease % batches + 1} of {batches}"
