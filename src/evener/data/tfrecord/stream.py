"""TFRecord files one record after the other, in the order of `tf.data`, for a plain PyTorch loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.utils.data as torch_data

from evener.data.tfrecord.dataset import misfit
from evener.data.tfrecord.files import Files, find
from evener.data.tfrecord.records import Bad, opened, told, walk
from evener.data.tfrecord.schema import Features, Schema, UnfitRecord
from evener.errors import ConfigError


class Raw(NamedTuple):
    """One record's data, and where it is from."""

    data: bytes
    path: Path
    number: int
    offset: int


@dataclass
class SkippedRecords:
    """How many bad records a stream has left out so far, in all its passes."""

    count: int = 0


class Stream(torch_data.IterableDataset[dict[str, Any]]):
    """Examples in the order of the files. Each step gives a new stream, and their order counts, as in `tf.data`.

    `Stream(files, features).shard(0, 2).shuffle(10_000).repeat(10).batch(100)` gives dicts name -> tensor [100, ...].
    Without `batch`, an element is one Example: name -> tensor of its shape. In a `DataLoader` with several workers
    (use `batch_size=None`) each takes every n-th record by itself, so nothing comes twice.

    A recipe wants `TFRecords` instead: shuffled as a whole, and every batch known by its number.

    Args:
        files, features: as for `TFRecords`.
        skip_bad_records: leave bad records out; `skipped.count` counts them, and each pass says how many.

    Raises:
        InputError: while iterating: files missing, damaged or cut short: names file, record and byte.
    """

    def __init__(self, files: Files, features: Features, *, skip_bad_records: bool = False) -> None:
        self.schema = Schema(features)
        self.skipped = SkippedRecords()
        self._size: int | None = None
        self._drop_last = False
        paths = find(files)
        self._source: Callable[[int], Iterator[Raw]] = lambda _: _records(paths, self.skipped, skip_bad_records)

    def shard(self, index: int, count: int) -> Stream:
        """Every `count`-th record, beginning with `index`: what one of `count` workers reads."""
        if not 0 <= index < count:
            raise ConfigError(
                f"shard {index} of {count} is none.", why="shards count from 0.", fix=f"use 0 to {max(count, 1) - 1}."
            )
        return self._then(lambda source, again: itertools.islice(source(again), index, None, count))

    def shuffle(self, buffer: int, *, seed: int = 0) -> Stream:
        """Hold `buffer` records and give a random one of them each time, another order in each pass."""
        if buffer < 1:
            raise ConfigError(f"a shuffle buffer of {buffer} records holds none.", fix="use 1 or more.")
        return self._then(lambda source, again: _shuffled(source(again), buffer, [seed, again]))

    def repeat(self, count: int | None = None) -> Stream:
        """`count` passes, or without end."""
        if count is not None and count < 0:
            raise ConfigError(f"{count} passes cannot be made.", fix="use 0 or more, or None for no end.")

        def repeated(source: Callable[[int], Iterator[Raw]], again: int) -> Iterator[Raw]:
            passes = itertools.count() if count is None else range(count)
            for number in passes:
                empty = True
                for raw in source(again * (count or 0) + number):
                    empty = False
                    yield raw
                if empty:  # for ever nothing
                    return

        return self._then(repeated)

    def batch(self, size: int, *, drop_last: bool = False) -> Stream:
        """Batches of `size` Examples, the last step; the last batch may be smaller."""
        if size < 1:
            raise ConfigError(f"a batch of {size} Examples is empty.", fix="use 1 or more.")
        made = self._then(lambda source, again: source(again))
        made._size, made._drop_last = size, drop_last
        return made

    def __iter__(self) -> Iterator[dict[str, Any]]:
        source = self._source(0)
        while piece := list(itertools.islice(source, self._size or 1)):
            if self._drop_last and len(piece) < (self._size or 1):
                return
            try:
                made = self.schema.batch([raw.data for raw in piece])
            except UnfitRecord as unfit:
                raw = piece[unfit.row]
                raise misfit(f"{raw.path}: record {raw.number} at byte {raw.offset}", unfit) from None
            yield made if self._size else {name: value[0] for name, value in made.items()}

    def _then(self, step: Callable[[Callable[[int], Iterator[Raw]], int], Iterator[Raw]]) -> Stream:
        if self._size:
            raise ConfigError("a stream of batches has no further steps.", fix="put batch at the end.")
        made = Stream.__new__(Stream)
        made.schema, made.skipped, made._size, made._drop_last = self.schema, self.skipped, None, False
        source = self._source
        made._source = lambda again: step(source, again)
        return made


def _records(paths: list[Path], skipped: SkippedRecords, skip: bool) -> Iterator[Raw]:
    """All good records; in a worker of a `DataLoader` its part of them."""
    info = torch_data.get_worker_info()
    index, count = (info.id, info.num_workers) if info else (0, 1)
    bad: list[Bad] = []
    good = 0
    for path in paths:
        for found in walk(opened(path), data=True, skip=skip):
            if isinstance(found, Bad):
                if not skip:
                    raise found.error()
                bad.append(found)
                skipped.count += 1
                continue
            good += 1
            if (good - 1) % count == index:
                yield Raw(found.data, path, found.number, found.offset)
    told(len(bad), good, bad[0] if bad else None)


def _shuffled(source: Iterator[Raw], buffer: int, seed: list[int]) -> Iterator[Raw]:
    random = np.random.Generator(np.random.PCG64(seed))
    held: list[Raw] = []
    for raw in source:
        if len(held) < buffer:
            held.append(raw)
            continue
        place = int(random.integers(buffer))
        yield held[place]
        held[place] = raw
    for place in random.permutation(len(held)).tolist():
        yield held[place]
