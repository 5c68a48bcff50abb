"""Several towers, here threads, sum through memory that they share: the same bits on each, update after update."""

from __future__ import annotations

import time

import pytest
import torch
from meeting_threads import descriptors, together

from evener.transport import channel
from evener.worker.allreduce import shared_sum
from evener.worker.allreduce.doorbell import Doorbell
from evener.worker.allreduce.shared_sum import SharedSum


def given(rank, update):
    """A flat of the averaged numbers, whose length is no multiple of anything, and one of bytes."""
    generator = torch.Generator().manual_seed(1000 * update + rank)
    return [torch.randn(1237, generator=generator), torch.full((5,), rank, dtype=torch.uint8), torch.zeros(0)]


def linked(rank, gather):
    return Doorbell(rank, gather, lambda missing: None, time.monotonic)


def summing(rank, gather, **options):
    """What tower `rank` sums with; its links are closed again."""
    bell = linked(rank, gather)
    try:
        return SharedSum(given(rank, 0), rank, gather, bell, **options)
    finally:
        gather()
        bell.close()


@pytest.mark.parametrize(
    ("size", "window", "rounds"), [(2, 1 << 20, 1), (3, 1 << 20, 1), (5, 1 << 20, 1), (3, 1000, 5)]
)
def test_every_tower_has_the_sum_in_the_order_of_ranks_update_after_update(size, window, rounds):
    updates = 50

    def tower(rank, gather):
        shared = summing(rank, gather, window=window)
        assert shared.rounds == rounds
        sums = []
        for update in range(updates):
            flats = given(rank, update)
            for number in range(rounds):
                shared.give(flats, number)
                gather()
                shared.take(flats, number)  # some have begun with the next round by now
            sums.append(flats)
        return sums

    found = together(size, tower)

    for update in range(updates):
        expected = given(0, update)
        for rank in range(1, size):
            expected = [one + other for one, other in zip(expected, given(rank, update), strict=True)]
        for sums in found:
            assert all(torch.equal(one, other) for one, other in zip(sums[update], expected, strict=True))


def test_what_is_shared_is_two_windows_however_large_the_tensors_are(monkeypatch):
    made, sizes = channel.Memory, []
    monkeypatch.setattr(shared_sum, "Memory", lambda nbytes: sizes.append(nbytes) or made(nbytes))
    together(2, lambda rank, gather: summing(rank, gather, window=1024).rounds)

    assert sizes == [2 * 1024] * 2


def test_nothing_is_left_open():
    before = descriptors()
    together(3, summing)

    assert descriptors() == before


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("memory", "worker:0: no memory to share: no room; worker:1: no memory to share"),
        ("no memfd", "worker:1: no memory to share"),
        ("mapping", "worker:0 cannot map the memory of all others: no room; worker:1 cannot"),
    ],
)
def test_towers_that_cannot_share_all_learn_why(monkeypatch, what, said):
    """Then they sum in another way; one that went on alone would wait for ever."""
    before = descriptors()

    def refuse(*_):
        raise OSError("no room")

    if what == "memory":
        monkeypatch.setattr(channel.os, "posix_fallocate", refuse)
    elif what == "no memfd":
        monkeypatch.delattr(channel.os, "memfd_create")
    else:
        made = channel.Memory
        monkeypatch.setattr(shared_sum, "Memory", lambda nbytes: made(nbytes // 2))  # the others want all of it
        said = "worker:0 cannot map the memory of all others: mmap length is greater than file size"

    def tower(rank, gather):
        with pytest.raises(OSError, match=said) as caught:
            summing(rank, gather)
        return str(caught.value)

    assert len(set(together(2, tower))) == 1
    assert descriptors() == before


def test_memory_that_is_not_there_is_not_taken():
    """Where a container's memory is limited, nobody is refused: somebody is killed."""

    def tower(rank, gather):
        with pytest.raises(OSError, match="2 towers would share 10112 bytes each, and 20223 are free"):
            summing(rank, gather, free=20_223)
        return summing(rank, gather, free=20_224).fits(given(rank, 1))

    assert together(2, tower) == [True, True]


def test_it_fits_tensors_like_those_it_was_made_for():
    def tower(rank, gather):
        shared = summing(rank, gather)
        others = ([torch.zeros(1236)], [flat.double() for flat in given(rank, 0)])
        return shared.fits(given(rank, 1)), *map(shared.fits, others)

    assert together(2, tower) == [(True, False, False)] * 2
