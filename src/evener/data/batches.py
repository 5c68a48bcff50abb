"""Leases become batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch

from evener.data.chance import seed_batch
from evener.data.dataset import Batch, Dataset, Randomized
from evener.data.loader import FromLoader, LoaderBatches, LoaderSamples
from evener.data.order import Order, uniforms
from evener.errors import ConfigError


class Batches:
    """The batches of a run, numbered by their leases.

    Lease k is the samples at positions [k*B, (k+1)*B) of the order. It depends on (seed, k) alone, never on
    which worker took it or when, so a run with any number of workers goes through the same samples as one process.
    """

    ahead = 0  # batches that it is good to know beforehand, besides the next one

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int) -> None:
        self.dataset = dataset
        self.batch_size = _checked(batch_size)
        self.order = Order(len(dataset), seed)
        #: Whether a batch may be made in another thread (see `Prefetch`).
        self.quiet = bool(getattr(dataset, "thread_safe", False))
        self._randomized = dataset if isinstance(dataset, Randomized) else None

    @property
    def steps_per_epoch(self) -> Fraction:
        """Batches in one pass over the data; not a whole number when the last batch of a pass reaches into the next."""
        return Fraction(len(self.dataset), self.batch_size)

    def named(self, lease: int) -> str:
        """The samples of a lease, for people."""
        return self.order.named(lease * self.batch_size, (lease + 1) * self.batch_size)

    def samples_in(self, lease: int) -> int:
        return self.batch_size

    def expect(self, leases: Sequence[int]) -> None:
        """Nothing is made beforehand here: `Prefetch` asks for what comes next."""

    def close(self) -> None:
        """There is nothing to end."""

    def batch(self, lease: int) -> Batch:
        """The batch of lease 0, 1, 2, ...: always `batch_size` samples.

        What is random in it follows from (seed, lease): data sets that say how in `Randomized`, others since the global
        generators are seeded. Those that are made in another thread meanwhile use none of these (`Prefetch`).
        """
        return self._made(lease, lease * self.batch_size, (lease + 1) * self.batch_size)

    def stretch(self, start: int, count: int) -> Batch:
        """So many samples from this one of the stream on. What is random in it follows from (seed, start)."""
        return self._made(start, start, start + count)

    def _made(self, number: int, start: int, stop: int) -> Batch:
        if not self.quiet:
            seed_batch(self.order.seed, number)
        indices = torch.from_numpy(self.order.indices(start, stop))
        if self._randomized is None:
            return self.dataset.batch(indices)
        chance = uniforms(self.order.seed, start, stop, self._randomized.numbers)
        return self._randomized.random_batch(indices, torch.from_numpy(chance))


#: A run's batches, by their leases.
Numbered = Batches | LoaderBatches


class Samples:
    """Every sample of a data set once, in its own order, for evaluation: batches, of which the last may be short."""

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, _checked(batch_size)

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for _, batch in self.counted())

    def counted(self) -> Iterator[tuple[int, Batch]]:
        """Each batch after the number of its samples, whatever it looks like."""
        samples = len(self.dataset)
        for start in range(0, samples, self.batch_size):
            stop = min(start + self.batch_size, samples)
            yield stop - start, self.dataset.batch(torch.arange(start, stop))


#: A validation set's.
AllSamples = Samples | LoaderSamples


def all_of(dataset: Dataset, batch_size: int, *, few: bool = False) -> AllSamples:
    """A validation set's samples; `few`: the first ones, to try something out."""
    if isinstance(dataset, FromLoader):
        return dataset.whole().few() if few else dataset.whole()
    return Samples(_First(dataset, 2) if few else dataset, batch_size)


def first_of(dataset: Dataset) -> Batch:
    """A few samples, to look at."""
    if isinstance(dataset, FromLoader):
        return dataset.first()
    return dataset.batch(torch.arange(min(2, len(dataset))))


class _First:
    """The first `count` samples of a data set."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self._dataset, self._count = dataset, min(count, len(dataset))

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: torch.Tensor) -> Batch:
        return self._dataset.batch(indices)


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise ConfigError(
            f"batch_size={batch_size} gives empty batches.",
            why="a gradient is the mean over at least one sample.",
            fix="use a batch size of 1 or more.",
        )
    return batch_size
