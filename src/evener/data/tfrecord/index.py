"""Where each record of a file begins: found once by going from length to length, then kept beside the file."""

from __future__ import annotations

import json
import os
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evener import files
from evener.data.tfrecord import crc
from evener.data.tfrecord.records import Bad, FoundRecord, OnDisk, walk
from evener.data.tfrecord.search import RecordBytes

FORMAT = "evener tfrecord index 1"
Stamp = tuple[int, str, int]  # a file's size, digest of its ends, time: a time that lies costs a walk, no more


@dataclass(frozen=True)
class Index:
    """The good records of one file, in order.

    Args:
        offsets, lengths: int64 [N], in bytes: of the record's first byte, and of its data alone.
        checked: the data's checksums were compared too, and bad records left out.
        skipped, first: how many bad stretches were left out, and the first of them.
    """

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checked: bool = False
    skipped: int = 0
    first: Bad | None = None

    def __len__(self) -> int:
        return len(self.offsets)


def index(source: RecordBytes, *, skip_bad_records: bool = False, cache: bool = True) -> Index:
    """The index of a file, from the one kept beside it when that is of this very size, time, beginning and end.

    Args:
        skip_bad_records: check all data now, so that every worker finds the same good records.
        cache: read and write the kept index, `.NAME.evener-index`. A directory that cannot be written stays as it is.

    Raises:
        InputError: a length is damaged or the file ends inside a record, and bad ones are not skipped.
    """
    stamp = (*source.stamp, source.time_ns) if isinstance(source, OnDisk) and cache else None
    found = _kept(source, stamp) if stamp else None
    if found is not None and found.checked >= skip_bad_records and (skip_bad_records or not found.skipped):
        return found
    found = _made(source, skip_bad_records)
    if stamp:
        _keep(source.path, stamp, found)
    return found


def path_of(path: Path) -> Path:
    """Where the index of a file is kept; hidden, so that a pattern such as train* does not find it."""
    return path.with_name(f".{path.name}.evener-index")


def _made(source: RecordBytes, skip: bool) -> Index:
    # Arrays of numbers: a gigabyte of empty records is 60 million of them.
    offsets, lengths = array("q"), array("q")
    skipped, first = 0, None
    for found in walk(source, data=skip, skip=skip):
        if isinstance(found, FoundRecord):
            offsets.append(found.offset)
            lengths.append(found.length)
        elif skip:
            skipped, first = skipped + 1, first or found
        else:
            raise found.error()
    return Index(np.array(offsets, np.int64), np.array(lengths, np.int64), skip, skipped, first)


def _keep(path: Path, stamp: Stamp, made: Index) -> None:
    about: dict[str, Any] = {"format": FORMAT, "stamp": stamp, "checked": made.checked, "skipped": made.skipped}
    if made.first:
        first = made.first
        about["first"] = [first.offset, first.nbytes, first.number, first.reason]
    content = json.dumps(about).encode() + b"\n" + made.offsets.astype("<i8").tobytes()
    content += made.lengths.astype("<i8").tobytes()
    kept = path_of(path)
    part = kept.with_name(f"{kept.name}.{os.getpid()}")
    with suppress(OSError):  # a read-only or full disk: the next run goes from length to length again
        try:
            fd = files.descriptor(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, link=False)
            with os.fdopen(fd, "wb") as file:
                file.write(content + crc.tail(content))
            part.replace(kept)
        finally:
            part.unlink(missing_ok=True)


def _kept(source: RecordBytes, stamp: Stamp) -> Index | None:
    """The kept index, or None when there is none or it does not belong to the file as it is now."""
    try:
        content = files.content(path_of(source.path), source.size + files.SMALL)  # 16 bytes a record, as it has itself
        about, _, table = content[:-4].partition(b"\n")
        read = json.loads(about)
        if content[-4:] != crc.tail(content[:-4]) or read["format"] != FORMAT or tuple(read["stamp"]) != stamp:
            return None
        offsets, lengths = np.frombuffer(table, "<i8").astype(np.int64).reshape(2, -1)
        first = Bad(source.path, *read["first"]) if "first" in read else None
        found = Index(offsets, lengths, bool(read["checked"]), int(read["skipped"]), first)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return found if _fits(found, source.size) else None


def _fits(found: Index, size: int) -> bool:
    for numbers in (found.offsets, found.lengths):  # before they are added: sums of large ones are negative
        if not bool(((numbers >= 0) & (numbers <= size)).all()):
            return False
    ends = found.offsets + found.lengths + 16
    return bool((ends <= np.append(found.offsets[1:], size)).all())
