"""Leases become batches."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import torch

from evener.data.dataset import Batch, Dataset, Randomized
from evener.data.order import Order, uniforms
from evener.errors import ConfigError


class Batches:
    """The batches of a run, numbered by their leases.

    Lease k is the samples at positions [k*B, (k+1)*B) of the order. It depends on (seed, k) alone, never on
    which worker took it or when, so a run with any number of workers goes through the same samples as one process.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int) -> None:
        self.dataset = dataset
        self.batch_size = _checked(batch_size)
        self.order = Order(len(dataset), seed)
        self._randomized = dataset if isinstance(dataset, Randomized) else None

    @property
    def steps_per_epoch(self) -> Fraction:
        """Batches in one pass over the data; not a whole number when the last batch of a pass reaches into the next."""
        return Fraction(len(self.dataset), self.batch_size)

    def batch(self, lease: int) -> Batch:
        """The batch of lease 0, 1, 2, ...: always `batch_size` samples."""
        start, stop = lease * self.batch_size, (lease + 1) * self.batch_size
        indices = torch.from_numpy(self.order.indices(start, stop))
        if self._randomized is None:
            return self.dataset.batch(indices)
        chance = uniforms(self.order.seed, start, stop, self._randomized.numbers)
        return self._randomized.random_batch(indices, torch.from_numpy(chance))


def whole(dataset: Dataset, batch_size: int) -> Iterator[Batch]:
    """Every sample once, in the data set's own order, for evaluation; the last batch may be short."""
    samples = len(dataset)
    for start in range(0, samples, _checked(batch_size)):
        yield dataset.batch(torch.arange(start, min(start + batch_size, samples)))


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise ConfigError(
            f"batch_size={batch_size} gives empty batches.",
            why="a gradient is the mean over at least one sample.",
            fix="use a batch size of 1 or more.",
        )
    return batch_size
