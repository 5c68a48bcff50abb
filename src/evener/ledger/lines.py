"""The account of every batch: which gradient went into which update, and what became of the others.

`LOGDIR/ledger.jsonl` has one JSON array a line; its first element says what happened:

    ["b", 1, 1760000000.0, 2, "run id", "async", 800, 803, [801, 802], 100, 60000, 0, "0.1.0"]
        a beginning: format, time (seconds since 1970), generation, run, mode, step it goes on from, next lease,
        unapplied leases, batch size, samples in an epoch, seed, version of evener
    ["u", 801, [[801, 2, 1, 270]]]
        an update: the step after it, [lease, worker, epoch, seq] of its gradients
    ["d", 815, 0, 3, 271, "computed at version 798, now 800", true]
        a gradient dropped: lease, worker, epoch, seq, why, whether its lease went back to the pool with it (false: it
        had gone back before)
    ["r", 2, 1, [817, 818]]
        a worker left: worker, epoch, the leases that went back to the pool
    ["x", 815, 800, "not finite"]
        a lease was given up, with no update: lease, step, why
    ["s", 900, 905, [902, 904]]
        a checkpoint is cut: step, next lease, unapplied leases
    ["c", 900]
        the checkpoint of this step is complete on the disk
    ["e", 2000, "reached step 2000", 2003, [2001]]
        an end: step, why, next lease, unapplied leases
    ["g", 12]
        a gap: so many lines could not be written

Of a script with a loop of its own the mode ends in "/script", and samples are batches, one a lease: 0 where they have
no numbers. A gradient of several batches has several entries with the same worker, epoch and seq; one of a batch that
has no number, or that another gradient was of, has the lease -1.
Where a recipe's data are a DataLoader, the mode ends in "/loader": samples are its batches, too. Where a gradient of a
recipe is of several batches (--batches-per-step), "/several" stands in the mode, and it has an entry for each.
Where workers have batches of their own size (--batch-sizes, --batch-by-speed), the mode ends in "/samples", and the
format is 2: the batch size is 1, so that what is counted are samples, and in the place of a lease stands a stretch of
them, [first, last + 1].

Without ps tasks, one process or several towers have generation 0 and push with worker 0, 1, ..., epoch 0 and the step
as seq.
A beginning at step s rolls back all updates beyond s that stand above it. `evener.audit` judges what it says.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from evener.errors import VersionError
from evener.files import NOT_JSON

FORMAT = 1
#: Of a run in which leases are stretches of samples; also the newest that is read.
BY_SAMPLES = 2

#: The end of a mode, where batches are those of a script, or of a recipe's DataLoader.
SCRIPT, LOADER = "/script", "/loader"
#: What stands in a mode, where a gradient of a recipe is of several batches.
SEVERAL = "/several"
#: The end of a mode, where leases are stretches of samples.
SAMPLES = "/samples"

#: The number of a batch; or a stretch of samples: the first, and the one after the last.
Lease = int | tuple[int, int]
#: lease, worker, epoch, seq of one gradient.
Entry = tuple[Lease, int, int, int]


class Begin(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    """A run starts to train, at the parameters of `step`."""

    format: int = FORMAT
    time: float = 0.0
    generation: int = 0
    run: str = ""
    mode: str = ""
    step: int = 0
    next_lease: int = 0
    unapplied: tuple[Lease, ...] = ()
    batch_size: int = 0
    samples: int = 0
    seed: int = 0
    evener: str = ""


class Update(msgspec.Struct, frozen=True, array_like=True, tag="u"):
    step: int
    entries: Sequence[Entry]


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    lease: Lease
    worker: int
    epoch: int
    seq: int
    reason: str
    back: bool


class Returned(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    worker: int
    epoch: int
    leases: Sequence[Lease]


class Skipped(msgspec.Struct, frozen=True, array_like=True, tag="x"):
    lease: Lease
    step: int
    reason: str


class Cut(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    step: int
    next_lease: int
    unapplied: Sequence[Lease]


class Complete(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    step: int


class End(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    step: int
    reason: str
    next_lease: int
    unapplied: Sequence[Lease]


class Gap(msgspec.Struct, frozen=True, array_like=True, tag="g"):
    lines: int


class Damaged(msgspec.Struct, frozen=True):
    """What stands in the file but is no line; never written on purpose."""

    torn: bool  # it is the file's last and has no end: whoever wrote it was killed


Line = Begin | Update | Dropped | Returned | Skipped | Cut | Complete | End | Gap
encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


def parse(text: bytes) -> Line | Damaged:
    """One line of the file, with its end if it has one.

    Raises:
        VersionError: a newer evener wrote it.
    """
    try:
        line: Line = _decode(text)
    except NOT_JSON:
        return Damaged(torn=not text.endswith(b"\n"))
    if isinstance(line, Begin) and line.format > BY_SAMPLES:
        raise VersionError(
            f"the ledger has format {line.format}, this evener reads up to {BY_SAMPLES}.", fix="update evener."
        )
    return line
