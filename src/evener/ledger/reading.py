"""Read a ledger: forwards to judge it, backwards to see how far the last run came."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from evener.errors import CheckpointError
from evener.files import opened
from evener.ledger.lines import Begin, Cut, Damaged, Dropped, End, Line, Returned, Update, parse

log = logging.getLogger(__name__)

FILE = "ledger.jsonl"

#: Bytes of a line. The longest names the leases that are out when a checkpoint is cut.
LONGEST = 1 << 22


def path_of(logdir: Path) -> Path:
    return logdir / FILE


def read(path: Path) -> Iterator[tuple[int, Line | Damaged]]:
    """All lines with their numbers, from 1; the file may be larger than memory.

    Raises:
        CheckpointError: there is no such file.
        VersionError: a newer evener wrote it.
    """
    try:
        with opened(path) as file:
            for number, text in enumerate(_lines(file), 1):
                if text != b"\n":
                    yield number, parse(text)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}).", fix="name the logdir of a run; it holds ledger.jsonl."
        ) from error


def beginnings(path: Path) -> Iterator[Begin]:
    """Only these, faster; raises as `read` does."""
    mark = b'["b",'
    try:
        with opened(path) as file:
            for text in _lines(file):
                if text.startswith(mark) and isinstance(line := parse(text), Begin):
                    yield line
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}).", fix="name the logdir of a run; it holds ledger.jsonl."
        ) from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than any of ours, the beginning, which is no line."""
    while text := file.readline(LONGEST):
        end = text
        while len(end) == LONGEST and not end.endswith(b"\n"):
            end = file.readline(LONGEST)
        yield text if end is text else text[:80] + b"\n"


def granted(path: Path) -> tuple[int, dict[int, int]]:
    """The newest generation, and the newest epoch of each worker, that a ledger knows of; none where there is none.

    Raises:
        VersionError: a newer evener wrote it.
    """
    generation, epochs = 0, dict[int, int]()
    for _, line in read(path) if path.exists() else ():
        lives: Iterable[tuple[int, int]] = ()
        match line:
            case Begin():
                generation = max(generation, line.generation)
            case Update():
                lives = [(worker, epoch) for _, worker, epoch, _ in line.entries]
            case Dropped() | Returned():
                lives = [(line.worker, line.epoch)]
        for worker, epoch in lives:
            epochs[worker] = max(epoch, epochs.get(worker, 0))
    return generation, epochs


def lost(path: Path, step: int) -> int:
    """How many updates were applied beyond `step`, as far as the ledger knows: what going back to it loses.

    Ask before the new beginning is written. 0 where there is no ledger. Reads the end of the file only.
    """
    try:
        for text in _backwards(path):
            match parse(text):
                case Begin(step=last) | Update(step=last) | Cut(step=last) | End(step=last):
                    return max(0, last - step)
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error)
    return 0


def _backwards(path: Path, chunk: int = 1 << 16) -> Iterator[bytes]:
    """The lines of a file, the last one first."""
    if not path.exists():
        return
    with opened(path) as file:
        at, tail = file.seek(0, os.SEEK_END), b""
        while at > 0 and len(tail) <= LONGEST:  # else it is no ledger
            size = min(chunk, at)
            at = file.seek(at - size)
            tail, *whole = (file.read(size) + tail).split(b"\n")
            yield from reversed(whole)
        yield tail
