"""A loader whose batches have no numbers: each worker reads its part of the stream."""

import pytest
import torch
from giving import Pool
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from evener.loop.leased import Streamed


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def test_each_worker_reads_its_part_of_a_stream():
    parts = [[batch.tolist() for batch in Streamed(DataLoader(Stream(), 2), i, 2, Pool())] for i in range(2)]
    assert parts == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]


def test_one_worker_reads_the_programs_own_loader():
    pool = Pool()
    streamed = Streamed(DataLoader(Stream(), 4, drop_last=True), 0, 1, pool)
    assert [batch.tolist() for batch in streamed] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert pool.ended == [True]
    assert streamed.drop_last


def test_a_stream_ends_with_the_run():
    pool = Pool()
    seen = []
    for batch in Streamed(DataLoader(Stream(), 2), 0, 1, pool):
        seen.append(batch)
        pool.stopped = True
    assert len(seen) == 1
    assert list(Streamed(DataLoader(Stream(), 2), 0, 1, pool)) == []


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_sampler_without_a_length_is_shared_out_too(batch_size):
    """It decides which samples there are: not the data set's own order, which may have no end."""

    class Endless(Dataset):
        def __getitem__(self, index):
            return index * 10

    class Some(Sampler):
        def __iter__(self):
            return iter([5, 3, 8, 1])

    given = DataLoader(Endless(), batch_size, sampler=Some())
    parts = [[torch.as_tensor(batch).tolist() for batch in Streamed(given, i, 2, Pool())] for i in range(2)]
    assert parts == ([[50, 80], [30, 10]] if batch_size is None else [[[50, 30]], [[80, 10]]])
