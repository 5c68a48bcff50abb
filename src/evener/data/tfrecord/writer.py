"""TFRecord files are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evener.data.tfrecord import crc
from evener.errors import ConfigError, InputError


@dataclass(frozen=True, slots=True)
class Part:
    """One set of records to write, such as train: how many, and the function that gives the data of record i."""

    count: int
    record: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Written:
    """What one file holds now."""

    path: Path
    records: int
    nbytes: int


def write(directory: str | Path, parts: Mapping[str, Part], *, shards: int = 1) -> list[Written]:
    """Write each part as `shards` files, train-00000-of-00004.tfrecord and so on, in the order of its records.

    The files get their names when all of them are written. None that exists is replaced.

    Args:
        directory: made if it does not exist.
        parts: name -> records.
        shards: files of each part; every one holds a stretch of the records, within one record of equal length.

    Raises:
        ConfigError: shards below 1 or more than records, or a file of such a name is there already.
        InputError: the directory cannot be written.
    """
    into = Path(directory).expanduser()
    _check(into, parts, shards)
    try:
        into.mkdir(parents=True, exist_ok=True)
        with _workshop(into) as workshop:
            made = [_file(workshop, name, part, number, shards) for name, part in parts.items()
                    for number in range(shards)]  # fmt: skip
            for written in made:
                _publish(written.path, into / written.path.name)
    except OSError as error:
        raise InputError(
            f"{into} cannot be written: {error.strerror or error}.",
            why=str(error),
            fix="check the directory's permissions and the free disk space, or choose another directory.",
        ) from error
    return [Written(into / written.path.name, written.records, written.nbytes) for written in made]


def frame(data: bytes) -> bytes:
    """A record as it stands in the file: length, checksum, data, checksum."""
    return crc.head(len(data)) + data + crc.tail(data)


def _check(into: Path, parts: Mapping[str, Part], shards: int) -> None:
    for name, part in parts.items():
        if not 1 <= shards <= max(part.count, 1):
            raise ConfigError(
                f"{part.count} {name} records cannot be written into {shards} files.",
                why="each file holds one record at least.",
                fix=f"use --shards 1 to {max(part.count, 1)}.",
            )
        there = sorted(path.name for path in into.glob(f"{name}*.tfrecord*"))
        if there:
            raise _exists(into / there[0])


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} exists already.",
        why="files are never replaced, and two sets of one name in a directory would be read as one.",
        fix="choose another directory, or delete the old files.",
    )


@contextmanager
def _workshop(into: Path) -> Iterator[Path]:
    """A directory beside the goal, on the same disk, that is gone afterwards."""
    workshop = Path(tempfile.mkdtemp(prefix=".evener-convert-", dir=into))
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _file(workshop: Path, name: str, part: Part, number: int, shards: int) -> Written:
    path = workshop / f"{name}-{number:05}-of-{shards:05}.tfrecord"
    start, stop = part.count * number // shards, part.count * (number + 1) // shards
    with path.open("wb") as file:
        for record in range(start, stop):
            file.write(frame(part.record(record)))
        file.flush()
        os.fsync(file.fileno())
        return Written(path, stop - start, file.tell())


def _publish(made: Path, path: Path) -> None:
    """Give a file its name, unless another process was quicker."""
    try:
        os.link(made, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without hard links
        made.rename(path)
