"""Write what happens to every batch, line by line, at a microsecond each."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from evener.files import descriptor
from evener.ledger.lines import (
    BY_SAMPLES,
    LOADER,
    SAMPLES,
    SCRIPT,
    Begin,
    Complete,
    Cut,
    Dropped,
    End,
    Entry,
    Gap,
    Lease,
    Line,
    Returned,
    Skipped,
    Update,
    encode,
)
from evener.policy.leases import LeaseState
from evener.policy.stretches import StretchState
from evener.state.atomic import LACKING

log = logging.getLogger(__name__)

#: Bytes of lines that wait in memory while the disk takes none; beyond it they are given up, and a gap says so.
PATIENCE = 1 << 22


class Ledger:
    """Append to one logdir's ledger. Only the owner of the global step does, under the lock of its `Store`.

    Each line is one `write` to a descriptor in append mode, so it survives the death of this process; at checkpoints
    and at the end the file is flushed to the disk. A disk that takes nothing ends no run: lines wait in memory, and are
    counted as a gap when there are too many.

    Args:
        path: the file, made at `begin`; None: nothing is kept.
        about: what every beginning of this process says; `begin` fills in the rest.
        clock: seconds since 1970.
        tell: gets a line when the file cannot be written, and when it can be again.
    """

    def __init__(
        self,
        path: Path | None = None,
        about: Begin | None = None,
        *,
        clock: Callable[[], float] = lambda: 0.0,
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        self._path = path
        self._about = about or Begin()
        self._clock = clock
        self._tell = tell
        self._fd = -1
        self._begun = False  # whether it has said anything
        self._mid_line = False  # whether the file ends within a line
        self._waiting = bytearray()  # what the disk has not taken yet, from the middle of a line perhaps
        self._lines = 0  # begun or whole in `_waiting`
        self._missing = 0  # lines given up
        self._told = False
        self._cut: tuple[int, LeaseState | StretchState] = (
            0,
            LeaseState(0, ()),
        )  # the step of the last checkpoint, and its leases
        self._since = 0  # lines after it

    def begin(
        self, step: int, samples: int, book: LeaseState | StretchState, *, script: bool = False, loader: bool = False
    ) -> None:
        """Training starts at this step, with this much data and these leases still to come: of a book of samples,
        stretches of them.

        Args:
            script: samples are the batches of a script's loader, and a lease is one of them.
            loader: or of a recipe's.
        """
        self._about = msgspec.structs.replace(self._about, samples=samples)
        if isinstance(book, StretchState):
            mode = self._about.mode.removesuffix(SAMPLES) + SAMPLES
            self._about = msgspec.structs.replace(self._about, mode=mode, batch_size=1, format=BY_SAMPLES)
        elif script or loader:
            mark = SCRIPT if script else LOADER
            mode = self._about.mode.removesuffix(mark) + mark
            self._about = msgspec.structs.replace(self._about, mode=mode, batch_size=1)
        self._begin(step, book)

    def update(self, step: int, entries: Sequence[Entry]) -> None:
        """These gradients became one update, which led to this step."""
        self._append(Update(step, entries))

    def drop(self, entry: Entry, reason: str, *, back: bool) -> None:
        """A gradient was dropped; `back`: its lease went back to the pool with it."""
        self._append(Dropped(*entry, reason, back))

    def returned(self, worker: int, epoch: int, leases: Sequence[Lease]) -> None:
        """A worker left and these leases went back to the pool."""
        if leases:
            self._append(Returned(worker, epoch, leases))

    def skip(self, lease: Lease, step: int, reason: str) -> None:
        """A lease was given up at this step."""
        self._append(Skipped(lease, step, reason))

    def cut(self, step: int, book: LeaseState | StretchState) -> None:
        """A checkpoint of this step is copied, to be written in the background."""
        self._cut = (step, book)
        self._append(Cut(step, book.next_lease, book.unapplied))
        self._since = 0

    def complete(self) -> None:
        """The checkpoint that was cut last is complete on the disk."""
        self._again(*self._cut, self._since)
        self._append(Complete(self._cut[0]))
        self._flush()

    def end(self, step: int, reason: str, book: LeaseState | StretchState) -> None:
        """The run is over. One that never began, since its tasks could not, has left no line, and leaves none."""
        if not self._begun:
            return
        self._again(step, book, 0)
        self._append(End(step, reason, book.next_lease, book.unapplied))
        self._flush()

    def close(self) -> None:
        """Try once more what the disk had not taken. A run that failed is closed without an end."""
        if self._waiting:
            self._write(b"")
            if self._waiting:
                self._tell(f"the ledger lacks {self._missing + self._lines} lines: they could not be written")
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._path = None

    def _begin(self, step: int, book: LeaseState | StretchState) -> None:
        self._append(
            msgspec.structs.replace(
                self._about, time=round(self._clock(), 3), step=step, next_lease=book.next_lease,
                unapplied=book.unapplied,
            )
        )  # fmt: skip

    def _again(self, step: int, book: LeaseState | StretchState, since: int) -> None:
        """The file may have been deleted, with the logdir: another begins at this step, and lacks the lines since."""
        if self._fd < 0 or self._path is None or os.fstat(self._fd).st_nlink:
            return
        self._tell(f"warning: the ledger {self._path} was deleted; it begins again at step {step}")
        os.close(self._fd)
        self._fd, self._waiting, self._lines, self._mid_line = -1, bytearray(), 0, False
        with suppress(OSError):  # told when the line is written
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._begin(step, book)
        if since:
            self._append(Gap(since))

    def _append(self, line: Line) -> None:
        self._since += 1
        self._begun = True
        if self._path is not None:
            self._write(encode(line) + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            if self._fd < 0:
                self._fd = self._open()
            if self._waiting:
                self._wait(line)
                line = b""
            written = os.write(self._fd, self._waiting or line)
        except OSError as error:
            self._wait(line)
            self._refused(str(error.strerror))
            return
        if self._waiting or written < len(line):
            self._took(written, line)

    def _wait(self, line: bytes) -> None:
        self._waiting += line
        self._lines += bool(line)

    def _open(self) -> int:
        assert self._path is not None, "the ledger is closed"
        fd = descriptor(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, link=False)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # whoever wrote before was killed, or the disk was full
            self._waiting[:0] = b"\n"
            self._mid_line = True
        return fd

    def _took(self, written: int, line: bytes) -> None:
        """The disk took so many bytes of what waits, or else of this line."""
        self._wait(line)
        if written:
            self._mid_line = self._waiting[written - 1] != ord("\n")
            del self._waiting[:written]
            self._lines = self._waiting.count(b"\n")
        if self._waiting:
            self._refused("the disk is full")
        else:
            self._relieved()

    def _refused(self, why: str) -> None:
        """What waits is kept in memory; it is given up where it is too much."""
        if len(self._waiting) > PATIENCE:
            self._missing += self._lines
            gap = encode(Gap(self._missing)) + b"\n"
            self._waiting, self._lines = bytearray(b"\n" * self._mid_line + gap), 0
        if not self._told:
            self._told = True
            self._tell(f"the ledger {self._path} cannot be written ({why}); its lines wait in memory; training goes on")

    def _relieved(self) -> None:
        if self._told:
            lost = f"{self._missing} lines are lost" if self._missing else "nothing is lost"
            self._tell(f"the ledger {self._path} can be written again; {lost}")
        self._lines, self._missing, self._told, self._mid_line = 0, 0, False, False

    def _flush(self) -> None:
        """What a checkpoint holds must not be forgotten by the ledger, not even by a power loss."""
        if self._fd < 0:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # A full disk is told by the next line, and what a file system lacks at the start of the run.
            if error.errno not in {*LACKING, errno.ENOSPC, errno.EDQUOT}:
                self._tell(f"the ledger {self._path} cannot be flushed ({error.strerror}): its last lines may be lost")
