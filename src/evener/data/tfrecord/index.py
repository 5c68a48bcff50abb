"""Where each record of a file begins: found once by going from length to length, then kept beside the file."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evener.data.tfrecord import crc
from evener.data.tfrecord.records import Bad, OnDisk, Record, Source, walk

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


def index(source: Source, *, skip_bad_records: bool = False, cache: bool = True) -> Index:
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


def _made(source: Source, skip: bool) -> Index:
    places: list[tuple[int, int]] = []
    bad: list[Bad] = []
    for found in walk(source, data=skip, skip=skip):
        if isinstance(found, Record):
            places.append((found.offset, found.length))
        elif skip:
            bad.append(found)
        else:
            raise found.error()
    table = np.array(places, np.int64).reshape(-1, 2)
    return Index(table[:, 0].copy(), table[:, 1].copy(), skip, len(bad), bad[0] if bad else None)


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
            part.write_bytes(content + crc.tail(content))
            part.replace(kept)
        finally:
            part.unlink(missing_ok=True)


def _kept(source: Source, stamp: Stamp) -> Index | None:
    """The kept index, or None when there is none or it does not belong to the file as it is now."""
    try:
        content = path_of(source.path).read_bytes()
        about, _, table = content[:-4].partition(b"\n")
        read = json.loads(about)
        if content[-4:] != crc.tail(content[:-4]) or read["format"] != FORMAT or tuple(read["stamp"]) != stamp:
            return None
        offsets, lengths = np.frombuffer(table, "<i8").astype(np.int64).reshape(2, -1)
        first = Bad(source.path, *read["first"]) if "first" in read else None
        found = Index(offsets, lengths, bool(read["checked"]), int(read["skipped"]), first)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if _fits(found, source.size) else None


def _fits(found: Index, size: int) -> bool:
    ends = found.offsets + found.lengths + 16
    starts = np.concatenate((ends[:-1], [size]))
    inside = bool((found.lengths >= 0).all() and (found.offsets >= 0).all())
    return inside and bool((ends[:-1] <= found.offsets[1:]).all()) and (not len(ends) or int(ends[-1]) <= starts[-1])
