"""A loader whose batches are leases: what the program's `for` sees, whoever gives them and however they come."""

import gc
import random
import weakref

import pytest
import torch
from giving import Epochs, Pool
from torch.utils.data import DataLoader, Dataset

from evener.errors import ConfigError
from evener.loop.leased import Leased, supply_of


class Squares(Dataset):
    def __init__(self, count=20, bad=-1):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.bad:
            raise ValueError(f"sample {index} cannot be read")
        return index, random.random()


def loader(count=20, batch=5, **options):
    """Four batches in order."""
    return DataLoader(Squares(count), batch, **options)


def epoch(leased, pool):
    """Which batches a pass gives, by their place in the epoch, where the program takes a step after each."""
    seen = []
    for numbers, _ in leased:
        seen.append(int(numbers[0]) // 5)
        pool.hand.take()
    return seen


def test_it_has_everything_of_the_loader_and_its_length():
    given = loader(num_workers=0)
    leased = Leased(given, 0, Pool())
    assert len(leased) == 4
    assert leased.batch_size == 5
    assert leased.dataset is given.dataset
    with pytest.raises(AttributeError):
        _ = leased.nothing


def test_epochs_are_those_of_the_leases():
    pool = Pool(first=[0], answers=[[1], [2], [3], []], waits=[[4], [8]])
    pool.answers += [[5], [7], []]
    leased = Leased(loader(), 0, pool)
    assert epoch(leased, pool) == [0, 1, 2, 3]
    assert epoch(leased, pool) == [0, 1, 3]  # another worker had lease 6
    assert pool.ended == [True, True]
    assert pool.given_up == [[], []]


def test_a_lease_of_the_next_epoch_ends_this_one_and_is_the_next_ones_first():
    pool = Pool(first=[2], answers=[[3], [4], [5], [6], []], waits=[[]])
    leased = Leased(loader(), 0, pool)
    assert epoch(leased, pool) == [2, 3]
    assert pool.hand.first == 4
    assert epoch(leased, pool) == [0, 1, 2]


def test_a_pool_that_is_dry_may_have_more_of_the_same_epoch_later():
    """A worker has died, and its batches come back."""
    pool = Pool(first=[0], answers=[[], []], waits=[[1, 3], [2], [4]])
    leased = Leased(loader(), 0, pool)
    assert epoch(leased, pool) == [0, 1, 3, 2]
    assert pool.hand.first == 4


def test_batches_that_no_step_has_used_are_given_up_at_the_fence():
    pool = Pool(first=[0, 1, 2, 3], waits=[[4]])
    leased = Leased(loader(), 0, pool)
    assert [int(numbers[0]) for numbers, _ in leased] == [0, 5, 10, 15]  # without a step
    assert pool.given_up == [[0, 1, 2, 3]]


def test_a_run_that_stops_ends_the_pass():
    pool = Pool(first=[0, 1, 2, 3])
    leased = Leased(loader(), 0, pool)
    seen = []
    for numbers, _ in leased:
        seen.append(int(numbers[0]))
        pool.stopped = len(seen) == 2
    assert seen == [0, 5]
    assert list(leased) == []


def test_a_program_that_wants_a_batch_of_a_finished_pass_is_told_why_there_is_none():
    """As one that looks at the first batch does when it is started again."""
    pool = Pool(first=[8])
    pool.left_out = 1
    with pytest.raises(StopIteration, match=r"finished before this process began.*DataLoader before prepare"):
        next(iter(Leased(loader(), 0, pool)))


def test_finished_passes_are_empty():
    pool = Pool(first=[8], answers=[[9]])
    pool.left_out = 2
    leased = Leased(loader(), 0, pool)
    assert [epoch(leased, pool) for _ in range(2)] == [[], []]
    assert pool.ended == [], "what was not begun does not end"
    pool.answers += [[]]
    assert epoch(leased, pool) == [0, 1]


def test_a_pass_that_was_left_early_goes_on_in_the_next_one():
    """As a plain loader would begin anew: not before the epoch of the next pass is over either."""
    pool = Pool(first=[0, 1, 2, 3, 4, 5, 6, 7, 8], waits=[[]])
    leased = Leased(loader(), 0, pool)
    for _ in leased:
        pool.hand.take()
        break
    assert pool.ended == [False]
    assert not pool.hand.loading
    assert pool.hand.first == 1
    assert epoch(leased, pool) == [1, 2, 3, 0, 1, 2, 3]
    assert pool.hand.first == 8


def test_an_epoch_that_others_have_had_is_empty_here():
    """A slow worker among fast ones, and few batches: their sum must not become more than the program says."""
    pool = Pool(first=[0], answers=[[]], waits=[[13], []])
    leased = Leased(loader(), 0, pool)
    assert [epoch(leased, pool) for _ in range(4)] == [[0], [], [], [1]]
    assert pool.ended == [True] * 4


def test_an_epoch_of_which_updates_were_lost_comes_again_within_the_pass():
    """The ps tasks went back to a checkpoint: the program does not begin another pass for it."""
    pool = Pool(first=[0, 1, 2, 3], answers=[[]], waits=[[4], [2], [3], [4, 5], [6, 7], [8]])
    leased = Leased(loader(), 0, pool)
    assert epoch(leased, pool) == [0, 1, 2, 3]
    pool.hand.clear()  # ... and a new life
    assert epoch(leased, pool) == [2, 3, 0, 1, 2, 3]


def test_more_is_asked_for_than_an_accumulated_step_uses():
    pool = Pool(first=[0], answers=[[1], [2], [3], []], waits=[[]])
    for _ in Leased(loader(), 0, pool):
        pass
    assert pool.wants[:3] == [2, 3, 4], "all in hand are used already, and one more is wanted"


def test_a_life_that_has_ended_takes_its_batches_along():
    """Its links broke: the hand is another, and what was being loaded is somebody else's."""
    pool = Pool(first=[0, 1, 2, 3], answers=[], waits=[[4]])
    leased = Leased(loader(batch=5, num_workers=1), 0, pool)
    seen = []
    for numbers, _ in leased:
        seen.append(int(numbers[0]) // 5)
        pool.hand.take()
        if len(seen) == 1:  # 1 and 2 are in the loader's process
            pool.hand.clear()
            pool.hand.add([3])
    assert seen == [0, 3]


@pytest.mark.parametrize("persistent", [False, True])
def test_loader_processes_bring_the_same_as_one_process(persistent):
    """And are kept busy: with two batches each ahead."""

    def sight(**options):
        pool = Epochs()
        leased = Leased(loader(shuffle=True, **options), 7, pool)
        seen = []
        for _ in range(2):
            for numbers, chance in leased:
                seen.append((numbers.tolist(), chance.tolist(), torch.rand(()).item()))
                pool.hand.take()
        return seen, leased.ahead, max(pool.wants)

    alone, ahead, _ = sight()
    assert ahead == 1
    apart, ahead, most = sight(num_workers=2, persistent_workers=persistent)
    assert (ahead, most) == (5, 5)
    assert len(alone) == 8
    assert apart == alone, "samples, their chance, and chance in the loop"


def test_it_is_in_no_ring_of_references():
    """Or PyTorch finds the queues of its loader processes closed, and waits 5 seconds for each."""
    pool = Epochs()
    leased = Leased(loader(), 0, pool)
    next(iter(leased))
    gone = weakref.ref(leased)
    gc.disable()
    try:
        del leased
        assert gone() is None
    finally:
        gc.enable()


def test_a_pass_that_was_left_early_leaves_nothing_in_the_loaders_processes():
    def sight(**options):
        pool, seen = Epochs(), []
        leased = Leased(loader(shuffle=True, **options), 7, pool)
        for _ in range(2):
            for numbers, _ in leased:
                seen.append(numbers.tolist())
                pool.hand.take()
                if len(seen) == 2:
                    break
        return seen

    assert len(sight()) == 8
    assert sight(num_workers=2, persistent_workers=True) == sight()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_raises_ends_the_pass_with_its_own_error(workers):
    pool, error = Pool(first=[0, 1, 2, 3]), None
    leased = Leased(DataLoader(Squares(bad=7), 5, num_workers=workers), 0, pool)
    try:
        list(leased)
    except ValueError as raised:
        error = raised.with_traceback(None)  # whose frames hold the loader's processes
    assert "sample 7 cannot be read" in str(error)
    assert pool.ended == [False]
    assert not pool.hand.loading


def test_batches_of_single_samples():
    pool = Pool(first=[0, 1, 21], waits=[[]])
    leased = Leased(DataLoader(Squares(), batch_size=None), 0, pool)
    assert len(leased) == 20
    assert [index for index, _ in leased] == [0, 1]
    assert [index for index, _ in leased] == [1]


# --- a batch size for each worker


def test_by_samples_a_batch_is_the_stretch_that_was_given_in_the_samplers_order():
    pool = Pool(waits=[[3], [10], [17], [21]])
    pool.size = 3
    leased = Leased(loader(), 0, pool, by_samples=True)
    assert len(leased) == 4, "as many batches as the program would have without evener"
    seen = []
    for numbers, _ in leased:
        seen.append(numbers.tolist())
        pool.hand.take()
    assert seen == [[3, 4, 5], [10, 11, 12], [17, 18, 19]]
    assert next(iter(leased))[0].tolist() == [1, 2, 3], "sample 21 is the second of the next epoch"


def test_by_samples_all_workers_draw_the_same_order():
    def drawn(start, size):
        pool = Pool(waits=[[start]])
        pool.size = size
        return next(iter(Leased(loader(shuffle=True), 7, pool, by_samples=True)))[0].tolist()

    whole = drawn(0, 20)
    assert sorted(whole) == list(range(20))
    assert drawn(0, 6) + drawn(6, 14) == whole
    assert drawn(0, 6) != sorted(drawn(0, 6))


@pytest.mark.parametrize(
    "given",
    [
        DataLoader(Squares(), batch_size=None),
        DataLoader(Squares(), batch_sampler=[[0, 1], [2]]),
        None,
    ],
    ids=["no batches", "a batch sampler", "no loader"],
)
def test_by_samples_a_loader_that_says_itself_how_large_batches_are_is_refused(given):
    with pytest.raises(ConfigError, match="--batch-sizes and --batch-by-speed"):
        supply_of(given, by_samples=True)


def test_what_a_loader_gives_is_counted_in_batches_or_in_samples():
    assert (supply_of(loader(), by_samples=False).length, supply_of(loader(), by_samples=False).size) == (4, 5)
    assert (supply_of(loader(), by_samples=True).length, supply_of(loader(), by_samples=True).size) == (20, 1)
    assert supply_of(None, by_samples=False).length == 0


def test_by_samples_nothing_is_asked_for_ahead_whatever_processes_the_loader_has():
    assert Leased(loader(num_workers=2), 0, Pool()).ahead == 5
    assert Leased(loader(num_workers=2), 0, Pool(), by_samples=True).ahead == 1
