"""Batches by number: what a loader would give in each epoch, drawn alike on every worker."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler, get_worker_info

from evener.data.chance import number_of, seed_batch
from evener.errors import ConfigError


def length_of(loader: DataLoader[Any]) -> int:
    """Batches in an epoch; 0 where they have no numbers: it reads a stream, or does not know its length."""
    if isinstance(loader.dataset, IterableDataset):
        return 0
    try:
        return len(loader)
    except TypeError:
        return 0


def of_epoch(lease: int, batches: int) -> str:
    """
    >>> of_epoch(17, batches=13)
    'epoch 2, batch 5 of 13'
    """
    return f"epoch {lease // batches + 1}, batch {lease % batches + 1} of {batches}"


#: Batches of an epoch that are drawn at once.
PIECE = 50_000


class Numbers(list[int]):
    """The samples of one batch, which know its lease. Without a lease it is a batch of nothing."""

    lease: int = -1


class Draws:
    """The samples of each batch. An epoch's draw depends on (seed, epoch) alone.

    Args:
        loader: the user's own; its sampler draws.
        length: batches in an epoch.
        seed: of the run.
        single: what is drawn are samples, whatever its batches are; `length` counts them.
    """

    def __init__(self, loader: DataLoader[Any], length: int, seed: int, *, single: bool = False) -> None:
        self._loader, self._length, self._seed = loader, length, seed
        self._single = single or loader.batch_sampler is None
        #: Of two epochs, because batches around the end of one are asked for in turn.
        self._drawn: dict[int, _Drawing] = {}
        sampler = loader.sampler
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise ConfigError(
                "the loader has a DistributedSampler.",
                why="evener shares out the batches itself, so each worker would leave out the others' samples twice.",
                fix="leave the sampler out; say shuffle=True.",
            )

    def stretch(self, start: int, count: int) -> Numbers:
        """Samples of one epoch, where what is drawn are samples: of a loader without batches."""
        numbers = Numbers(sample for at in range(start, start + count) for sample in self.numbers(at))
        numbers.lease = start
        return numbers

    def numbers(self, lease: int) -> Numbers:
        """Raises ConfigError when the sampler gives fewer batches than its length says."""
        epoch, index = divmod(lease, self._length)
        if epoch not in self._drawn:
            while len(self._drawn) > 1:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[epoch] = self._draw(epoch)
        batches = self._drawn[epoch]
        if not batches.reach(index):
            raise ConfigError(
                f"the loader's sampler drew {batches.count} batches for epoch {epoch} of {self._length} batches.",
                why="batches are shared out by number, so their count is that of every epoch.",
                fix="let len() of the batch sampler be the number of its batches.",
            )
        drawn = batches.drawn[index]
        numbers = Numbers([drawn] if self._single else drawn)
        numbers.lease = lease
        return numbers

    def _draw(self, epoch: int) -> _Drawing:
        sampler: Any = None if self._single else self._loader.batch_sampler
        single: Any = self._loader.sampler
        state = torch.get_rng_state()
        seed_batch(self._seed, -1 - epoch)  # numbers that no lease has
        number, lent = number_of(self._seed, -1 - epoch) >> 1, list[Any]()
        for part in [*_nested(sampler), *_nested(single)]:
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
            generator = getattr(part, "generator", self)
            if generator is None:  # PyTorch's samplers would take the global one, which others use as well
                part.generator = torch.Generator().manual_seed(number)
                lent.append(part)
            elif isinstance(generator, torch.Generator):
                generator.manual_seed(number)
        try:
            drawing = _Drawing(iter(sampler if sampler is not None else single))
            drawing.more()
            return drawing
        finally:
            for part in lent:
                part.generator = None
            torch.set_rng_state(state)


class _Drawing:
    """The draw of one epoch, as far as it is needed: some samplers have no end to speak of."""

    def __init__(self, following: Iterator[Any]) -> None:
        self.drawn: list[Any] = []
        self._following: Iterator[Any] | None = following
        self._state: torch.Tensor | None = None  # of PyTorch's numbers, where the draw goes on

    @property
    def count(self) -> int:
        return len(self.drawn)

    def reach(self, index: int) -> bool:
        """Draw as far as this batch; False: there are fewer."""
        while index >= self.count and self._following is not None:
            before = torch.get_rng_state()
            if self._state is not None:
                torch.set_rng_state(self._state)
            try:
                self.more()
            finally:
                torch.set_rng_state(before)
        return index < self.count

    def more(self) -> None:
        """The next piece."""
        assert self._following is not None
        piece = list(islice(self._following, PIECE))
        self.drawn += piece
        self._state = torch.get_rng_state()
        if len(piece) < PIECE:
            self._following = None


def _nested(sampler: Any) -> list[Any]:
    """A sampler, the one that it takes its numbers from, and so on."""
    found: list[Any] = []
    while sampler is not None and not any(sampler is one for one in found):
        found.append(sampler)
        sampler = getattr(sampler, "sampler", None)
    return found


class Seeded(Dataset[Any]):
    """A data set whose chance follows from (seed, lease), in whatever process it is read."""

    def __init__(self, dataset: Dataset[Any], seed: int, *, single: bool) -> None:
        self.dataset, self.seed, self.single = dataset, seed, single

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, numbers: Numbers) -> Any:
        if numbers.lease < 0:
            return None
        seed_batch(self.seed, numbers.lease)
        return self.dataset[numbers[0]]

    def __getitems__(self, numbers: Numbers) -> Any:
        if numbers.lease < 0:
            return None
        seed_batch(self.seed, numbers.lease)
        whole = getattr(self.dataset, "__getitems__", None)
        return whole(list(numbers)) if callable(whole) else [self.dataset[number] for number in numbers]


class Every(IterableDataset[Any]):
    """A stream of which each worker takes every n-th item, and each of its loader's processes what it would anyway."""

    def __init__(self, dataset: IterableDataset[Any], index: int, workers: int) -> None:
        self.dataset, self.index, self.workers = dataset, index, workers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __iter__(self) -> Iterator[Any]:
        if (info := get_worker_info()) is not None:
            # Programs look there for what their own process is to read. It refuses to be changed in the usual way.
            object.__setattr__(info, "dataset", self.dataset)
        for number, item in enumerate(self.dataset):
            if number % self.workers == self.index:
                yield item


class Each(Sampler[Any]):
    """Of a sampler that does not know its length, each worker takes every n-th."""

    def __init__(self, sampler: Iterable[Any], index: int, workers: int) -> None:
        self.sampler, self.index, self.workers = sampler, index, workers

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.sampler), self.index, None, self.workers)


#: What a loader is made with, besides what says which samples are in a batch.
_KEPT = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
    "prefetch_factor", "persistent_workers",
)  # fmt: skip


class Undisturbed:
    """What a loader's process begins with: Ctrl-C is its parent's affair, which ends it after the last step."""

    def __init__(self, begin: Callable[[int], None] | None) -> None:
        self._begin = begin

    def __call__(self, number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._begin is not None:
            self._begin(number)


def remade(loader: DataLoader[Any], dataset: Dataset[Any], **which: Any) -> DataLoader[Any]:
    """A loader like the user's, over another data set; `which` says which samples are in a batch, and what is not as
    the user has it."""
    kept = {name: getattr(loader, name) for name in _KEPT}
    return DataLoader(dataset, **{**kept, "worker_init_fn": Undisturbed(loader.worker_init_fn), **which})
