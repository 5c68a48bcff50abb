"""A program's loader whose batches are shared out among all workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from evener.data.chance import seed_batch
from evener.data.numbered import Draws, Each, Every, Numbers, Seeded, length_of, remade
from evener.errors import ConfigError
from evener.loop.hand import Hand
from evener.loop.owner import Supply


class Gives(Protocol):
    """Who gives batches to a worker."""

    hand: Hand
    begun: int  # as often as the loader was iterated

    @property
    def stopped(self) -> bool:
        """Whether the run is over."""
        ...

    @property
    def number(self) -> int:
        """Of the pass under way, from 0: it is over when this epoch and all before it are."""
        ...

    def draw(self, want: int) -> None:
        """Bring so many leases into the hand, as far as there are any now."""
        ...

    def wait(self) -> None:
        """What is in hand is used up, or will not be: come back with a lease, be it of the next epoch, or stopped."""
        ...

    def passing(self) -> bool:
        """A pass over the loader begins; True: its epoch was finished before, so that it is empty."""
        ...

    def passed(self, *, whole: bool) -> None:
        """A pass has ended; not `whole`: the program has left it early."""
        ...


class LeftOut(Exception):
    """There is nothing of this epoch, and never was for this process."""


class Nothing(StopIteration):
    """Ends a `for`, as any StopIteration; a program that wanted a batch is told why there is none."""

    def __str__(self) -> str:
        return (
            "this epoch was finished before this process began, or the run is over, so its loader has nothing to give. "
            "To look at a batch without training on it, use the DataLoader before prepare: next(iter(loader))."
        )


class Pass:
    """One pass over a loader; nothing happens before its first batch is asked for."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except LeftOut:
            raise Nothing from None


class Leased:
    """Iterated as the loader that the program gave; has everything else of it too.

    Args:
        loader: the program's.
        seed: of the run.
        gives: the batches.
        by_samples: leases are stretches of its samples, and its batches are as large as these.
    """

    def __init__(self, loader: DataLoader[Any], seed: int, gives: Gives, *, by_samples: bool = False) -> None:
        self._loader, self._seed, self._gives = loader, seed, gives
        self._batches = length_of(loader)
        self._length = samples_of(loader) if by_samples else self._batches
        whole = loader.batch_sampler is not None
        # So many batches are prepared ahead by the loader's processes, and one is asked for when one is taken.
        self.ahead = loader.num_workers * (loader.prefetch_factor or 2) + 1 if loader.num_workers else 1
        if by_samples:
            self.ahead = 1
        draws = Draws(loader, self._length, seed, single=by_samples)
        self._coming = _Coming(draws, self._length, gives, self.ahead)
        which: dict[str, Any] = {"batch_sampler": self._coming}
        if not whole:
            which = {"batch_size": None, "sampler": self._coming}
        self._inner = remade(loader, Seeded(loader.dataset, seed, single=not whole), **which)

    def __len__(self) -> int:
        return self._batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        return Pass(self._given())

    def _given(self) -> Iterator[Any]:
        if self._gives.passing():
            raise LeftOut
        self._coming.issued.clear()  # of a pass that its program still holds
        mine, whole = self._gives.begun, False
        try:
            # After a pass that was left early, or updates that were lost, the next goes on where that one was, and over
            # the next epoch. One of which the others have had all batches is empty here.
            coming, coming.epoch = self._coming, self._gives.number
            while not self._gives.stopped and self._first() // self._length <= coming.epoch:
                yield from self._some(mine)
            whole = True
        finally:
            if self._gives.begun == mine:
                self._gives.hand.unload()
                self._coming.issued.clear()
                self._gives.passed(whole=whole)

    def _first(self) -> int:
        """The next lease, waited for."""
        while self._gives.hand.first < 0 and not self._gives.stopped:
            self._gives.wait()
        return self._gives.hand.first

    def _some(self, mine: int) -> Iterator[Any]:
        """Batches of this epoch as long as there are leases of it."""
        hand = self._gives.hand
        for batch in self._inner:
            if self._gives.stopped:
                return
            if self._gives.begun != mine and self._loader.num_workers:
                raise ConfigError(
                    "two passes over the prepared loader are under way at once.",
                    why="its batches are shared out one by one, and its processes prepare those of one pass.",
                    fix="make one pass at a time, take two batches of one pass, or use num_workers=0.",
                )
            lease = self._coming.issued.pop(0)
            if hand.delivered(lease):  # else it is of a life that has ended
                seed_batch(self._seed, lease)
                yield batch


def supply_of(loader: DataLoader[Any] | None, *, by_samples: bool) -> Supply:
    """What a program's loader gives. Raises ConfigError where workers cannot have batches of their own size."""
    if by_samples and loader is None:
        raise ConfigError(
            "--batch-sizes and --batch-by-speed need a loader.", why="they say how large its batches are.",
            fix="pass your DataLoader to ev.prepare, or leave the option out.",
        )  # fmt: skip
    if loader is None:
        return Supply()
    return Supply(samples_of(loader)) if by_samples else Supply(length_of(loader), loader.batch_size or 1)


def samples_of(loader: DataLoader[Any]) -> int:
    """Samples in an epoch of a loader whose batches evener may cut as it likes.

    Raises:
        ConfigError: it may not.
    """
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        raise ConfigError(
            "--batch-sizes and --batch-by-speed do not go with this loader.",
            why="evener sets how many samples are in a batch: a batch sampler, batch_size=None or a stream does too.",
            fix="give the DataLoader a batch_size, and shuffle or a sampler; or leave the option out.",
        )
    return len(loader.sampler)  # type: ignore[arg-type]  # PyTorch's own have a length


class _Coming:
    """What a DataLoader takes the samples of its batches from. It may run dry, and have more later.

    It knows nothing of the `Leased`: in a ring of references PyTorch's loader processes end late, 5 seconds each.
    """

    def __init__(self, draws: Draws, length: int, gives: Gives, ahead: int) -> None:
        self._draws, self._length, self._gives, self._ahead = draws, length, gives, ahead
        self.epoch = 0  # of the pass under way
        self.issued: list[int] = []  # leases in the order in which their batches will come

    def __iter__(self) -> Iterator[Numbers]:
        return self

    def __next__(self) -> Numbers:
        """The samples of the next batch to be prepared; StopIteration: there is none of this epoch now."""
        hand = self._gives.hand
        if hand.first < 0 and not self._gives.stopped:
            self._gives.draw(max(self._ahead + hand.most - 1, hand.count + 1))
        if hand.first < 0 or hand.first // self._length > self.epoch:
            raise StopIteration
        lease = hand.load()
        self.issued.append(lease)
        count = hand.size(lease)
        return self._draws.stretch(lease, count) if count else self._draws.numbers(lease)


def _part(loader: DataLoader[Any], index: int, workers: int) -> DataLoader[Any]:
    """What a worker reads of a loader whose batches have no numbers."""
    if isinstance(loader.dataset, IterableDataset):
        stream = Every(loader.dataset, index, workers)
        return remade(loader, stream, batch_size=loader.batch_size, drop_last=loader.drop_last)
    if loader.batch_sampler is None:
        return remade(loader, loader.dataset, batch_size=None, sampler=Each(loader.sampler, index, workers))
    return remade(loader, loader.dataset, batch_sampler=Each(loader.batch_sampler, index, workers))


class Streamed:
    """A loader over a stream: each worker reads its part. Its batches have no numbers."""

    def __init__(self, loader: DataLoader[Any], index: int, workers: int, gives: Gives) -> None:
        self._loader, self._gives = loader, gives
        self._inner = loader if workers == 1 else _part(loader, index, workers)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        if self._gives.passing():
            return
        mine, whole = self._gives.begun, False
        try:
            for batch in self._inner:
                if self._gives.stopped:
                    break
                yield batch
            whole = True
        finally:
            if self._gives.begun == mine:
                self._gives.passed(whole=whole)
