"""The files of one data set: found by names, read by record number as if they were one."""

from __future__ import annotations

import glob
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evener.data.tfrecord.index import Index, index
from evener.data.tfrecord.records import OnDisk, opened, read, told
from evener.data.tfrecord.search import RecordBytes
from evener.errors import InputError

#: A file, a pattern such as "data/train-*", or several of these, in this order.
Files = str | Path | Sequence[str | Path]

#: Files kept open at once; many systems allow a process 1,024.
MAX_OPEN = 128

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)")


def find(files: Files) -> list[Path]:
    """The paths that `files` names; those of a pattern sorted by name.

    Raises:
        InputError: nothing is there, or a file of a set x-00000-of-00004 is missing.
    """
    given = [files] if isinstance(files, str | Path) else list(files)
    paths: list[Path] = []
    for entry in given:
        text = str(Path(entry).expanduser())
        matches = [text] if Path(text).is_file() else sorted(glob.glob(text))
        paths += [Path(match) for match in matches]
        if not matches:
            raise InputError(
                f"there is no file {text}.",
                why="it names a file, or a pattern in which * stands for anything.",
                fix="check the path; `evener data convert` makes such files.",
            )
    if not paths:
        raise InputError("no TFRecord files were named.", why="a data set needs one at least.", fix="name files.")
    _check_complete(paths)
    return paths


class JoinedFiles:
    """All records of several files, numbered through from 0 in the order of the files.

    Args:
        paths: plain files are read from disk, a record at a time; gzip files are unpacked into memory.
        skip_bad_records: check every record now, leave bad ones out and say how many.
        cache_index: keep the index of each plain file beside it.
    """

    def __init__(self, paths: Sequence[Path], *, skip_bad_records: bool = False, cache_index: bool = True) -> None:
        self.paths = list(paths)
        self._sources: dict[int, RecordBytes] = {}
        self._lock = threading.Lock()
        self._stamps: list[tuple[int, str] | None] = []
        indexes: list[Index] = []
        for number, path in enumerate(self.paths):
            source = opened(path)
            indexes.append(index(source, skip_bad_records=skip_bad_records, cache=cache_index))
            self._stamps.append(source.stamp if isinstance(source, OnDisk) else None)
            self._remember(number, source)
        self._starts = np.cumsum([0, *map(len, indexes)])
        self._offsets = np.concatenate([made.offsets for made in indexes])
        self._lengths = np.concatenate([made.lengths for made in indexes])
        self.skipped = sum(made.skipped for made in indexes)
        told(self.skipped, len(self), next((made.first for made in indexes if made.first), None))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def records(self, numbers: NDArray[np.int64]) -> list[bytes]:
        """The data of records `numbers` (int64 [B]), in that order.

        Raises:
            InputError: one is damaged, or its file has changed.
        """
        return [read(source, number, offset, length) for source, number, offset, length in self._places(numbers)]

    def place(self, number: int) -> str:
        """Which file, record and byte a record is, for people."""
        ((source, record, offset, _),) = self._places(np.array([number]))
        return f"{source.path}: record {record} at byte {offset}"

    def _places(self, numbers: NDArray[np.int64]) -> list[tuple[RecordBytes, int, int, int]]:
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        files, inside = which.tolist(), (numbers - self._starts[which]).tolist()
        sources = {file: self._source(file) for file in dict.fromkeys(files)}
        places = zip(files, inside, self._offsets[numbers].tolist(), self._lengths[numbers].tolist(), strict=True)
        return [(sources[file], number, offset, length) for file, number, offset, length in places]

    def _source(self, file: int) -> RecordBytes:
        with self._lock:
            source = self._sources.get(file)
            if source is None:
                source = OnDisk(self.paths[file])
                if source.stamp != self._stamps[file]:
                    raise InputError(
                        f"{self.paths[file]} has changed while it was read.",
                        why="its size, its beginning or its end is not what it was when the run began.",
                        fix="start again; write new data under a new name.",
                    )
                self._remember(file, source)
            return source

    def _remember(self, file: int, source: RecordBytes) -> None:
        """Keep it open, and let go of the one opened longest ago; whoever reads it just now still holds it."""
        on_disk = [number for number, other in self._sources.items() if isinstance(other, OnDisk)]
        if len(on_disk) >= MAX_OPEN:
            del self._sources[on_disk[0]]
        self._sources[file] = source


def _check_complete(paths: Sequence[Path]) -> None:
    """A set that was copied in part trains on part of the data, and nothing else would tell."""
    sets: dict[tuple[str, int, str], set[int]] = {}
    for path in paths:
        if match := _SHARD.fullmatch(path.name):
            before, number, count, after = match.groups()
            sets.setdefault((str(path.parent / before), int(count), after), set()).add(int(number))
    for (before, count, after), numbers in sets.items():
        missing = [f"{before}-{n:05}-of-{count:05}{after}" for n in range(count) if n not in numbers]
        if missing:
            raise InputError(
                f"{len(missing)} of {count} files are missing: {missing[0]}{', ...' * (len(missing) > 1)}.",
                why="the others are parts of one set, as their names say.",
                fix="copy the whole set, or name the files one by one under other names if a part is what you want.",
            )
