"""Read a ledger: forwards to judge it, backwards to see how far the last run came."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from evener.errors import CheckpointError
from evener.ledger.lines import Begin, Cut, Damaged, End, Line, Update, parse

log = logging.getLogger(__name__)

FILE = "ledger.jsonl"


def path_of(logdir: Path) -> Path:
    return logdir / FILE


def read(path: Path) -> Iterator[tuple[int, Line | Damaged]]:
    """All lines with their numbers, from 1; the file may be larger than memory.

    Raises:
        CheckpointError: there is no such file.
        VersionError: a newer evener wrote it.
    """
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
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
        with path.open("rb") as file:
            for text in file:
                if text.startswith(mark) and isinstance(line := parse(text), Begin):
                    yield line
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}).", fix="name the logdir of a run; it holds ledger.jsonl."
        ) from error


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
    with path.open("rb") as file:
        at, tail = file.seek(0, os.SEEK_END), b""
        while at > 0:
            size = min(chunk, at)
            at = file.seek(at - size)
            tail, *whole = (file.read(size) + tail).split(b"\n")
            yield from reversed(whole)
        yield tail
