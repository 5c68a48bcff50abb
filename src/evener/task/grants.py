"""Which lives were granted, over all runs of a logdir: kept so that a full disk takes none of them back.

The file has two halves, of blocks that are allocated before anything is granted. They are written in place by turns,
so a write needs no room, and one that is cut off leaves the other half: what was promised before it. What counts is
the half with the larger number whose checksum is right.

Writing in place is chosen because all else needs room at the wrong moment: a draft that is renamed needs its own
blocks, and what a spare file frees others may take first. On a file system that copies on write (btrfs, ZFS) a full
disk can refuse even this. Then nothing is promised: a worker that asks for a place waits aloud and asks again, a ps:0
that begins waits too, and those that train go on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec.structs import replace

from evener import files
from evener.errors import CheckpointError, Unavailable
from evener.ledger import granted
from evener.state.atomic import atomic_write, flush
from evener.state.checkpoint import Manifest
from evener.state.manifest import MOST

#: The file in the directory of the checkpoints.
NAME = "grants.json"
#: A half is a multiple of so many bytes, the largest block of common file systems: a cut write touches one half only.
BLOCK = 4096
#: Bytes that one worker's epoch and holder take at most, and the rest.
WORKER, REST = 96, 512
#: Bytes of the file: 100,000 workers.
LARGEST = 32 << 20
#: Seconds between two tries of a ps:0 that cannot begin.
PAUSE = 0.5


class Grants(msgspec.Struct, frozen=True):
    """What was granted. Never rolls back, unlike parameters (RELIABILITY P4)."""

    generation: int = 0
    epochs: dict[int, int] = {}
    holders: dict[int, str] = {}  # worker -> the process that has its newest epoch
    number: int = 0  # of the write


@dataclass(slots=True)
class GrantsFile:
    """The file of one logdir, for the ps:0 that holds its lock.

    Args:
        workers: how many there may be; more room is taken where there are more.
        tell: gets a line when it cannot be written, and when it can be again.
    """

    path: Path
    workers: int
    tell: Callable[[str], None]
    grants: Grants = field(default_factory=Grants)
    _half: int = 0  # bytes; 0: the file is not there, or of the form that evener 0.1.0 wrote
    _told: bool = False

    def find(self, ledger: Path, manifest: Manifest | None) -> None:
        """Read what was granted so far. Where the file is missing, as beside a copied checkpoint: what else tells it.

        Raises:
            CheckpointError: it is damaged: no number in it can be trusted.
        """
        try:
            grants, self._half = _read(self.path)
        except FileNotFoundError:
            grants = Grants(*granted(ledger))
        epochs = dict(grants.epochs)
        for worker, (epoch, _) in (manifest.seqs if manifest else {}).items():
            epochs[int(worker)] = max(epoch, epochs.get(int(worker), 0))
        self.grants = replace(grants, epochs=epochs)

    def begin(self, *, sleep: Callable[[float], None], patience: float, stopped: Callable[[], str]) -> None:
        """Begin a generation that no life before has had, and know it on the disk.

        Raises:
            CheckpointError: it cannot be written: at once in a new logdir, else after `patience` seconds.
        """
        following = replace(self.grants, generation=self.grants.generation + 1)
        left = patience if self.grants.generation else 0.0
        while (why := self._write(following)) is not None:
            if left <= 0 or stopped():
                raise CheckpointError(
                    f"{self.path} cannot be written ({why}).",
                    why="it says which places were given; one that is given twice would mix up two runs.",
                    fix="make room, or choose another --logdir.",
                )
            left -= PAUSE
            sleep(PAUSE)

    def keep(self, epochs: Mapping[int, int], holders: Mapping[int, str]) -> None:
        """Know these on the disk. Raises Unavailable when they are not: nobody may be told of them yet."""
        if (why := self._write(replace(self.grants, epochs=dict(epochs), holders=dict(holders)))) is not None:
            raise Unavailable(f"ps:0 to write who has which place ({self.path}: {why}).", fix="make room on its disk.")

    def _write(self, grants: Grants) -> str | None:
        """Why not; None when it is on the disk."""
        grants = replace(grants, number=self.grants.number + 1)
        try:
            self._put(grants)
        except OSError as error:
            why = error.strerror or str(error)
            if not self._told:
                self._told = True
                self.tell(
                    f"{self.path} cannot be written ({why}): no worker that comes now gets a place; the others train on"
                )
            return why
        self.grants = grants
        if self._told:
            self._told = False
            self.tell(f"{self.path} can be written again")
        return None

    def _put(self, grants: Grants) -> None:
        text = _sealed(grants)
        needed = max(len(text), REST + WORKER * self.workers)
        half = self._half if len(text) <= self._half else -(-needed // BLOCK) * BLOCK
        padded = text.ljust(half, b" ")
        # At its first time, and where more workers came than there was room for, the file is made anew; and where
        # somebody has removed it, for then nothing of it would be found again.
        if half != self._half or not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)  # the logdir may have been deleted since
            atomic_write(self.path, [padded, padded])
            self._half = half
            return
        fd = files.descriptor(self.path, os.O_WRONLY, link=False)
        try:
            at = half * (grants.number % 2)
            while padded:
                written = os.pwrite(fd, padded, at)
                at, padded = at + written, padded[written:]
            flush(fd)
        finally:
            os.close(fd)


def _sealed(grants: Grants) -> bytes:
    body = msgspec.json.encode(grants)
    return hashlib.sha256(body).hexdigest().encode() + b" " + body + b"\n"


def _opened(half: bytes) -> Grants | None:
    """None: a write was cut off, or the disk has changed it."""
    digest, _, body = half.rstrip().partition(b" ")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    return msgspec.json.decode(body, type=Grants)


def _read(path: Path) -> tuple[Grants, int]:
    """What counts, and the bytes of a half. Raises FileNotFoundError."""
    try:
        data = files.content(path, LARGEST)
        if data.startswith(b"{"):  # as evener 0.1.0 wrote it
            grants, half = msgspec.json.decode(data, type=Grants), 0
        else:
            half = len(data) // 2
            found = [whole for part in (data[:half], data[half:]) if (whole := _opened(part)) is not None]
            if not found or half % BLOCK:
                raise ValueError("no half of it has its checksum")
            grants = max(found, key=lambda grants: grants.number)
        if not all(0 <= number <= MOST for number in (grants.generation, *grants.epochs, *grants.epochs.values())):
            raise ValueError("a number in it is none of a life")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, *files.NOT_JSON) as error:
        raise CheckpointError(
            f"{path} is damaged: {getattr(error, 'strerror', None) or error}.",
            why="it says which process may push under which number.",
            fix="remove it if no task is running: it is made again from the ledger and the checkpoint.",
        ) from error
    return grants, half
