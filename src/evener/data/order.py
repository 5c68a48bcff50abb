"""The order in which samples are visited, and the chance of each visit: functions of the seed alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evener.errors import ConfigError, InputError

_NONE = np.empty(0, dtype=np.int64)


def uniforms(seed: int, start: int, stop: int, numbers: int) -> NDArray[np.float64]:
    """Random numbers 0 <= u < 1 for positions start, ..., stop - 1 of the stream: [stop - start, numbers].

    Each position has its own numbers, whatever stretch they are asked for with. So a batch of 2B is two batches of B,
    also when it is distorted at random. Philox counts instead of walking: it can begin anywhere, four numbers a count.

    >>> bool((uniforms(0, 3, 9, 5)[2:4] == uniforms(0, 5, 7, 5)).all())
    True
    """
    counts = -(-numbers // 4)
    philox = np.random.Philox(key=[seed, 0x65_76_65_6E_65_72], counter=start * counts)
    drawn = np.random.Generator(philox).random((stop - start, counts * 4))
    return drawn[:, :numbers]


def batches_named(samples: int, seed: int, size: int) -> Callable[[int], str]:
    """What names the samples of a lease, for people: lease k is the positions [k * size, (k + 1) * size)."""
    return lambda lease: Order(samples, seed).named(lease * size, (lease + 1) * size)


class Order:
    """An endless stream of sample indices: every epoch holds each sample once, shuffled anew.

    Position p lies in epoch p // samples; there it is entry p % samples of a permutation that follows from
    (seed, epoch). So any stretch of the stream can be computed by anybody at any time: a worker that joins late, a
    run that resumes, a replay. Nothing is ever stored. A stretch may straddle two epochs, so that all
    batches have the same size (TensorFlow's `next_batch` does the same).

    >>> order = Order(samples=3, seed=0)
    >>> sorted(order.indices(0, 3).tolist()), sorted(order.indices(3, 6).tolist())
    ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, samples: int, seed: int, shuffle: bool = True) -> None:
        if samples < 1:
            raise InputError(
                f"an order over {samples} samples is empty.",
                why="every batch needs samples.",
                fix="check the path or the filter that the train set is made with.",
            )
        if seed < 0:
            raise ConfigError(
                f"seed={seed} is negative.", why="the generator takes none.", fix="use a whole number from 0."
            )
        self.samples = samples
        self.seed = seed
        self.shuffle = shuffle
        # Two, because leases come nearly in order: around the end of an epoch both sides of it are asked for in turn.
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """The sample indices (int64 [stop - start]) at positions start, start + 1, ..., stop - 1; yours to change."""
        if not 0 <= start <= stop:
            raise ValueError(f"positions {start}..{stop} are not a stretch of the stream")
        pieces = []
        while start < stop:
            epoch, first = divmod(start, self.samples)
            count = min(self.samples - first, stop - start)
            pieces.append(self._permutation(epoch)[first : first + count])
            start += count
        return pieces[0].copy() if len(pieces) == 1 else np.concatenate([_NONE, *pieces])

    def named(self, start: int, stop: int, most: int = 8) -> str:
        """The samples at these positions, for people; a long list is cut.

        >>> Order(samples=3, seed=0, shuffle=False).named(1, 3)
        'samples 1, 2'
        """
        numbers = [str(number) for number in self.indices(start, stop)[: most + 1]]
        more = f" and {stop - start - most} more" if stop - start > most else ""
        return f"sample{'' if stop - start == 1 else 's'} {', '.join(numbers[:most])}{more}"

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        epoch = epoch if self.shuffle else 0
        found = self._permutations.get(epoch)
        if found is None:
            if len(self._permutations) == 2:
                del self._permutations[next(iter(self._permutations))]
            if self.shuffle:
                found = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.samples)
            else:
                found = np.arange(self.samples, dtype=np.int64)
            self._permutations[epoch] = found
        return found
