"""Batches by number: the same on every worker, whichever epochs it has drawn before."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from evener.data.numbered import Draws, Each, Every, Numbers, Seeded, length_of, remade
from evener.errors import ConfigError

COUNT = 12


class Items(Dataset):
    """Its samples are their numbers, and a number that chance gave."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return index, random.random(), np.random.random(), torch.rand(()).item()


class ByNumpy(Sampler):
    def __iter__(self):
        return iter(np.random.permutation(COUNT).tolist())

    def __len__(self):
        return COUNT


class ByPython(ByNumpy):
    def __iter__(self):
        return iter(random.sample(range(COUNT), COUNT))


class ByEpoch(Sampler):
    """As DistributedSampler: told its epoch."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([(i + self.epoch) % COUNT for i in range(COUNT)])

    def __len__(self):
        return COUNT


def generator():
    made = torch.Generator()
    made.manual_seed(5)
    return made


LOADERS = {
    "shuffled": lambda: DataLoader(Items(), 4, shuffle=True),
    "with a generator": lambda: DataLoader(Items(), 4, shuffle=True, generator=generator()),
    "weighted": lambda: DataLoader(Items(), 4, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT)),
    "weighted, with a generator": lambda: DataLoader(
        Items(), 4, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT, generator=generator())
    ),
    "by numpy": lambda: DataLoader(Items(), 4, sampler=ByNumpy()),
    "by Python": lambda: DataLoader(Items(), 4, sampler=ByPython()),
    "told its epoch": lambda: DataLoader(Items(), 4, sampler=ByEpoch()),
    "batch sampler": lambda: DataLoader(Items(), batch_sampler=BatchSampler(RandomSampler(Items()), 4, False)),
    "batch sampler, with a generator inside": lambda: DataLoader(
        Items(), batch_sampler=BatchSampler(RandomSampler(Items(), generator=generator()), 4, False)
    ),
    "single": lambda: DataLoader(Items(), batch_size=None, shuffle=True),
}


def drawn(loader, *epochs, seed=3):
    """The samples of these epochs, drawn in this order."""
    draws = Draws(loader, len(loader), seed)
    length = len(loader)
    return {epoch: [list(draws.numbers(epoch * length + i)) for i in range(length)] for epoch in epochs}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_draw_follows_from_seed_and_epoch_alone(kind):
    make = LOADERS[kind]
    all_of_them = drawn(make(), 0, 1, 2, 3)
    torch.manual_seed(77), random.seed(77), np.random.seed(77)  # another process, in another state
    assert drawn(make(), 3) == {3: all_of_them[3]}
    assert drawn(make(), 2, 0, 3) == {epoch: all_of_them[epoch] for epoch in (2, 0, 3)}


@pytest.mark.parametrize("kind", LOADERS)
def test_epochs_differ_and_seeds_too(kind):
    epochs = drawn(LOADERS[kind](), 0, 1)
    assert epochs[0] != epochs[1]
    if kind != "told its epoch":
        assert drawn(LOADERS[kind](), 0, seed=4)[0] != epochs[0]


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if "weighted" not in kind])
def test_an_epoch_has_each_sample_once(kind):
    batches = drawn(LOADERS[kind](), 0)[0]
    assert sorted(number for batch in batches for number in batch) == list(range(COUNT))


def test_in_order_stays_in_order():
    assert drawn(DataLoader(Items(), 5), 0, 1)[1] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert drawn(DataLoader(Items(), 5, drop_last=True), 0)[0] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_draw_leaves_torchs_chance_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    drawn(LOADERS["shuffled"](), 0, 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_knows_its_lease():
    numbers = Draws(DataLoader(Items(), 4), 3, 0).numbers(7)
    assert (numbers, numbers.lease) == ([4, 5, 6, 7], 7)


def test_a_batch_sampler_that_gives_fewer_than_it_says_is_named():
    class Short(BatchSampler):
        def __len__(self):
            return 4

    loader = DataLoader(Items(), batch_sampler=Short(RandomSampler(Items()), 4, False))
    draws = Draws(loader, len(loader), 0)
    draws.numbers(2)
    with pytest.raises(ConfigError, match="drew 3 batches for epoch 0 of 4"):
        draws.numbers(3)


def test_a_distributed_sampler_is_refused_unless_it_shares_with_nobody():
    Draws(DataLoader(Items(), 4, sampler=DistributedSampler(Items(), num_replicas=1, rank=0)), 3, 0)
    with pytest.raises(ConfigError, match="DistributedSampler"):
        Draws(DataLoader(Items(), 4, sampler=DistributedSampler(Items(), num_replicas=2, rank=0)), 2, 0)


def test_only_batches_that_can_be_counted_have_numbers():
    class Stream(IterableDataset):
        def __len__(self):
            return 10

        def __iter__(self):
            return iter(range(10))

    class Endless(Sampler):
        def __iter__(self):
            return iter([0])

    assert length_of(DataLoader(Items(), 5)) == 3
    assert length_of(DataLoader(Items(), 5, drop_last=True)) == 2
    assert length_of(DataLoader(Stream(), 5)) == 0
    assert length_of(DataLoader(Items(), 5, sampler=Endless())) == 0


# --- chance in a batch


def lease(number, *numbers):
    made = Numbers(numbers)
    made.lease = number
    return made


def test_chance_in_a_batch_follows_from_seed_and_lease():
    items = Seeded(Items(), 1, single=False)
    first = items.__getitems__(lease(5, 2, 3))
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    assert items.__getitems__(lease(5, 2, 3)) == first
    assert [sample[0] for sample in first] == [2, 3]
    assert first[0][1:] != first[1][1:]
    for other in (items.__getitems__(lease(6, 2, 3)), Seeded(Items(), 2, single=False).__getitems__(lease(5, 2, 3))):
        assert all(a != b for a, b in zip(other[0][1:], first[0][1:], strict=True))
    assert Seeded(Items(), 1, single=True)[lease(5, 2)] == first[0]


def test_a_data_set_that_reads_many_at_once_is_asked_so():
    class Many(Items):
        def __getitems__(self, numbers):
            assert type(numbers) is list
            return [-number for number in numbers]

    assert Seeded(Many(), 0, single=False).__getitems__(lease(0, 4, 5)) == [-4, -5]
    subset = Subset(TensorDataset(torch.arange(9)), [8, 7, 6])
    assert [int(x) for (x,) in Seeded(subset, 0, single=False).__getitems__(lease(0, 0, 2))] == [8, 6]


def test_everything_else_of_the_data_set_is_there():
    class Named(Items):
        classes = ("cat", "dog")

    assert Seeded(Named(), 0, single=False).classes == ("cat", "dog")
    with pytest.raises(AttributeError):
        _ = Seeded(Named(), 0, single=False).nothing


def test_a_loader_like_the_programs():
    def collate(batch):
        return [index for index, *_ in batch]

    loader = DataLoader(Items(), 4, collate_fn=collate, num_workers=2, prefetch_factor=3, timeout=7)
    made = remade(loader, loader.dataset, batch_sampler=[[1, 2], [3]])
    assert (made.collate_fn, made.num_workers, made.prefetch_factor, made.timeout) == (collate, 2, 3, 7)
    assert list(remade(DataLoader(Items(), 4, collate_fn=collate), Items(), batch_sampler=[[1, 2], [3]])) == [
        [1, 2],
        [3],
    ]


# --- a stream


class Stream(IterableDataset):
    """Shared out over the loader's processes as PyTorch's documentation shows."""

    length = 20

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        if info:
            assert info.dataset.length == self.length
        return iter(range(first, self.length, step))


def test_each_worker_takes_every_nth_item():
    parts = [list(Every(Stream(), index, 3)) for index in range(3)]
    assert parts[1] == list(range(1, 20, 3))
    assert sorted(item for part in parts for item in part) == list(range(20))
    assert Every(Stream(), 0, 2).length == 20


def test_and_so_does_each_of_its_loaders_processes():
    parts = []
    for index in range(2):
        loader = DataLoader(Every(Stream(), index, 2), batch_size=3, num_workers=2)
        parts.append([int(item) for batch in loader for item in batch])
    assert sorted(item for part in parts for item in part) == list(range(20))
    assert abs(len(parts[0]) - len(parts[1])) <= 2


def test_of_samples_in_an_order_without_length_each_worker_takes_every_nth():
    parts = [list(Each(iter(range(7)), index, 2)) for index in range(2)]
    assert parts == [[0, 2, 4, 6], [1, 3, 5]]


def test_a_draw_goes_on_piece_by_piece_as_if_it_were_drawn_at_once(monkeypatch):
    loader = DataLoader(range(40), batch_size=4, shuffle=True)
    at_once = [list(Draws(loader, 10, seed=5).numbers(lease)) for lease in range(10)]
    monkeypatch.setattr("evener.data.numbered.PIECE", 3)
    draws = Draws(loader, 10, seed=5)
    assert [list(draws.numbers(lease)) for lease in (9, 0, 4)] == [at_once[9], at_once[0], at_once[4]]
