"""A recipe's DataLoader: its batches by number, made by its own processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from evener.data.chance import seed_batch
from evener.data.numbered import Draws, Numbers, Seeded, length_of, of_epoch, remade
from evener.errors import InputError

#: In the place of a lease: a batch of nothing, which keeps the loader's processes in their turns.
_NOTHING = -1


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A DataLoader that is still to be made, with the run's batch size."""

    dataset: Any
    options: Mapping[str, Any]

    def made(self, batch_size: int) -> DataLoader[Any]:
        return DataLoader(self.dataset, batch_size=batch_size, **self.options)


def loader(
    dataset: Any,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    shuffle: bool = True,
    sampler: Any = None,
    **options: Any,
) -> Loading:
    """A DataLoader for a recipe's data, of the run's batch size: `--batch-size`, or `--eval-batch-size`.

    Args:
        collate: makes a batch of a list of samples; PyTorch's `default_collate` if None.
        num_workers: processes that make batches.
        shuffle: not where there is a sampler.
        options: others of `torch.utils.data.DataLoader`, such as `drop_last`.
    """
    given = {"collate_fn": collate, "num_workers": num_workers, "sampler": sampler, **options}
    return Loading(dataset=dataset, options={"shuffle": shuffle and sampler is None, **given})


class FromLoader:
    """A data set that is a DataLoader: it is counted in batches, and only the loader knows what is in one.

    Args:
        loading: how it was made, if with the run's batch size.
    """

    def __init__(self, loader: DataLoader[Any], loading: Loading | None = None) -> None:
        self.loader, self.loading = loader, loading
        self._length = length_of(loader)
        self._draws = Draws(loader, self._length, seed=0)
        if not self._length:
            raise InputError(
                "the DataLoader's batches have no numbers: it reads a stream, does not know its length, or is empty.",
                why="workers share out the batches of an epoch by number, so that each is trained on once.",
                fix="give it a map-style data set; a stream can be read by a loop of your own (evener.join).",
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._length

    def sized(self, batch_size: int) -> FromLoader:
        """With the run's batch size, where nobody else has said one."""
        return self if self.loading is None else FromLoader(self.loading.made(batch_size), self.loading)

    @property
    def size(self) -> int:
        """Samples of a batch, as far as the loader says it."""
        return self.loader.batch_size or 1

    @property
    def single(self) -> bool:
        """Whether its data set gives whole batches."""
        return self.loader.batch_sampler is None

    def batch(self, indices: Tensor) -> Any:
        raise InputError(
            "the samples of a DataLoader cannot be asked for one by one.",
            why="what is in a batch, and how it is put together, is the loader's affair.",
            fix="give the data set itself where it is to be read in another way.",
        )

    def first(self) -> Any:
        """A batch to look at, made in this process; every task sees the same one."""
        samples = Seeded(self.loader.dataset, 0, single=self.single)
        numbers = self._draws.numbers(0)
        return self.loader.collate_fn(samples[numbers] if self.single else samples.__getitems__(numbers))

    def whole(self) -> LoaderSamples:
        """All batches of an epoch, for a validation."""
        return LoaderSamples(self, self._draws)


def sized(dataset: Any, batch_size: int) -> Any:
    """A data set with the run's batch size, if it is a loader without one."""
    return dataset.sized(batch_size) if isinstance(dataset, FromLoader) else dataset


class LoaderSamples:
    """A loader's batches, each once, the same ones each time. Like `Samples`."""

    def __init__(self, data: FromLoader, draws: Draws, most: int | None = None) -> None:
        self._data, self._drawing = data, draws
        self._most = len(data) if most is None else most
        self._drawn: list[Numbers] = []
        self._inner: DataLoader[Any] | None = None

    def few(self) -> LoaderSamples:
        """The first batch alone."""
        return LoaderSamples(self._data, self._drawing, 1)

    def __len__(self) -> int:
        """How many samples there are."""
        return sum(map(len, self._numbers()))

    def __iter__(self) -> Iterator[Any]:
        return (batch for _, batch in self.counted())

    def counted(self) -> Iterator[tuple[int, Any]]:
        """Each batch after the number of its samples."""
        drawn = self._numbers()
        if self._inner is None:
            loader, single = self._data.loader, self._data.single
            which: dict[str, Any] = {"batch_size": None, "sampler": drawn} if single else {"batch_sampler": drawn}
            self._inner = remade(loader, Seeded(loader.dataset, 0, single=single), **which)
        for numbers, batch in zip(drawn, self._inner, strict=True):
            yield len(numbers), batch

    def _numbers(self) -> list[Numbers]:
        if not self._drawn:
            self._drawn = [self._drawing.numbers(number) for number in range(self._most)]
        return self._drawn


class LoaderBatches:
    """The batches of a run, numbered by their leases: lease k is batch k % n of epoch k // n, of n batches.

    Which samples are in it, and what is random in them, depends on (seed, k) alone. The loader's processes work on
    what `expect` has named, in that order. Where they are asked for more than is known, they get nothing to do in its
    place, so that as many stay under way as before.

    Like `Batches`.
    """

    def __init__(self, data: FromLoader, seed: int) -> None:
        loader = data.loader
        self.dataset, self.batch_size = data, data.size
        #: How many batches it is good to know beforehand.
        self.ahead = loader.num_workers * (loader.prefetch_factor or 2) if loader.num_workers else 0
        self._seed, self._draws = seed, Draws(loader, len(data), seed)
        self._known: deque[int] = deque()  # to be given to the processes
        self._issued: deque[int] = deque()  # under way, in the order in which they will come
        self._ready: dict[int, Any] = {}  # came before they were asked for
        self._samples: dict[int, int] = {}  # in each that was given to the processes
        numbers = _Asked(self._following)
        which: dict[str, Any] = {"batch_size": None, "sampler": numbers} if data.single else {"batch_sampler": numbers}
        self._inner = remade(
            loader, Seeded(loader.dataset, seed, single=data.single), collate_fn=_Passing(loader.collate_fn), **which
        )
        self._batches: Iterator[Any] | None = None

    def named(self, lease: int) -> str:
        """A lease for people."""
        return of_epoch(lease, len(self.dataset))

    def samples_in(self, lease: int) -> int:
        """Of the batch that came last: an epoch's last one may be short, and a sampler may draw any number."""
        return self._samples.get(lease, self.batch_size)

    def expect(self, leases: Sequence[int]) -> None:
        """These will be asked for next, in this order, and no others as far as anybody knows."""
        wanted = set(leases)
        self._ready = {lease: batch for lease, batch in self._ready.items() if lease in wanted}
        under_way = {*self._issued, *self._ready}
        self._samples = {lease: count for lease, count in self._samples.items() if lease in under_way}
        self._known = deque(lease for lease in leases if lease not in under_way)

    def batch(self, lease: int) -> Any:
        """The batch of lease 0, 1, 2, ...; whoever makes it."""
        if lease not in self._ready and lease not in self._known and lease not in self._issued:
            self._known.appendleft(lease)
        if self._batches is None:
            self._batches = iter(self._inner)
        while lease not in self._ready:
            batch = next(self._batches)
            came = self._issued.popleft()
            if came != _NOTHING:
                self._ready[came] = batch
        seed_batch(self._seed, lease)  # in this process too, for what the model does with Python's or NumPy's numbers
        return self._ready.pop(lease)

    def close(self) -> None:
        """End the loader's processes."""
        self._batches = None

    def _following(self) -> Numbers:
        if not self._known:
            self._issued.append(_NOTHING)
            return Numbers()
        lease = self._known.popleft()
        self._issued.append(lease)
        numbers = self._draws.numbers(lease)
        self._samples[lease] = len(numbers)
        return numbers


class _Asked:
    """What a DataLoader takes the samples of its batches from. It never ends."""

    def __init__(self, following: Callable[[], Numbers]) -> None:
        self._following = following

    def __iter__(self) -> Iterator[Numbers]:
        return self

    def __next__(self) -> Numbers:
        return self._following()


class _Passing:
    """A loader's `collate_fn`, which is not asked to make a batch of nothing."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> Any:
        return None if samples is None else self._collate(samples)
