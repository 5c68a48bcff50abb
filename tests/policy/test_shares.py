"""How many samples each worker gets: the best there is, and at rest while speeds are."""

import itertools
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from evener.errors import ConfigError
from evener.policy.shares import SharePlan, Shares, allot

quick = settings(derandomize=True, database=None, deadline=None)
speeds = st.lists(st.floats(0.05, 20), min_size=1, max_size=5)


def greedy(total, rates, quantum, caps, overheads):
    """As the document says it, one quantum after the other."""
    shares = [quantum] * len(rates)
    while sum(shares) < total:
        able = [at for at, cap in enumerate(caps) if cap is None or shares[at] + quantum <= max(cap, quantum)]
        if not able:
            break
        ends = {at: overheads[at] + (shares[at] // quantum + 1) * quantum / rates[at] for at in able}
        shares[min(able, key=lambda at: (ends[at], at))] += quantum
    return shares


@pytest.mark.parametrize(
    ("times", "shares", "seconds"),
    [
        ([1, 2, 3, 4], [192, 96, 64, 48], 192),
        ([1, 1, 1, 10], [130, 129, 129, 12], 130),
    ],
)
def test_the_examples_of_the_document(times, shares, seconds):
    assert allot(400, [1 / time for time in times]) == shares
    assert max(size * time for size, time in zip(shares, times, strict=True)) == seconds


@pytest.mark.parametrize(
    ("times", "rate"), [([1, 2, 3, 4], 2.083), ([1, 1, 1, 10], 3.077), ([n**0.5 for n in range(1, 9)], 4.351)]
)
def test_the_rates_of_the_document_in_batches_of_100_a_second(times, rate):
    total = 100 * len(times)
    shares = allot(total, [1 / time for time in times])
    assert total / max(size * time for size, time in zip(shares, times, strict=True)) == pytest.approx(rate, abs=5e-4)


def test_by_eights_for_gpus():
    assert allot(96, [2, 1], 8) == [64, 32]
    assert allot(96, [1, 1, 0.01], 8) == [48, 40, 8], "nobody gets less than a quantum"


def test_a_bound_is_kept_and_the_others_take_the_rest():
    assert allot(100, [10, 1, 1], caps=[20, None, None]) == [20, 40, 40]
    assert allot(100, [1, 1], caps=[30, 30]) == [30, 30], "what nobody may have is taken by who is free first"


@quick
@given(
    speeds, st.integers(1, 4), st.integers(0, 60), st.lists(st.none() | st.integers(1, 40), max_size=5),
    st.none() | st.lists(st.floats(0, 50), min_size=5, max_size=5),
)  # fmt: skip
def test_it_is_what_handing_out_one_by_one_gives(rates, quantum, more, caps, overheads):
    caps = [*caps, *[None] * 5][: len(rates)]
    overheads = [0.0] * len(rates) if overheads is None else overheads[: len(rates)]
    total = quantum * (len(rates) + more)
    assert allot(total, rates, quantum, caps, overheads) == greedy(total, rates, quantum, caps, overheads)


def test_it_is_so_for_whatever_overheads_and_bounds():
    """Where one is bounded, another one is no longer too late to get anything."""
    random = Random(1)
    for _ in range(3000):
        count, quantum = random.randint(1, 6), random.randint(1, 4)
        rates = random.choices([0.05, 0.1, 0.5, 1, 2, 3.3, 20], k=count)
        overheads = random.choices([0, 0, 0.3, 5, 50, 200], k=count)
        caps = random.choices([None, None, 1, 5, 20], k=count)
        total = quantum * (count + random.randint(0, 120))
        assert allot(total, rates, quantum, caps, overheads) == greedy(total, rates, quantum, caps, overheads)


@quick
@given(speeds, st.integers(0, 12))
def test_no_other_sharing_ends_earlier(rates, more):
    total = len(rates) + more
    best = allot(total, rates)
    assert sum(best) == total and min(best) >= 1

    def ends(shares):
        return max(size / rate for size, rate in zip(shares, rates, strict=True))

    if len(rates) <= 3:
        others = (s for s in itertools.product(range(1, total + 1), repeat=len(rates)) if sum(s) == total)
        assert ends(best) <= min(map(ends, others)) * (1 + 1e-12)


def test_a_hundred_workers_and_a_million_samples():
    shares = allot(1_000_000, [1 + worker % 7 for worker in range(100)])
    assert sum(shares) == 1_000_000 and max(shares) < 7.1 * min(shares)


def balanced(times, rounds, *, size=100, **plan):
    """Rounds of workers that need so long for a sample; what was told in each."""
    workers = len(times(0) if callable(times) else times)
    shares = Shares(SharePlan(sizes=(size,) * workers, by_speed=True, **plan))
    told = []
    for number in range(rounds):
        for worker, time in enumerate(times(number) if callable(times) else times):
            shares.took(worker, shares.size(worker), shares.size(worker) * time)
        told.append(shares.round_over())
    return shares, told


def test_constant_speeds_are_balanced_once_after_ten_rounds():
    shares, told = balanced([1, 1, 1, 10], 100)
    assert [shares.size(worker) for worker in range(4)] == [130, 129, 129, 12]
    assert [number for number, lines in enumerate(told, 1) if lines] == [10]
    assert told[9][-1] == "worker 3 gets 12 of 400 samples (0.1 of the fastest's speed)"


@pytest.mark.parametrize("slower", [1.5, 2, 4])
def test_what_every_batch_costs_does_not_make_a_slow_worker_look_slower_still(slower):
    """Both need the time of 20 samples for any batch: a rate alone would take share after share from the slow one."""

    def seconds(worker, samples):
        return (1, slower)[worker] * (20 + samples) / 1000

    shares = Shares(SharePlan(sizes=(32, 32), by_speed=True))
    for _ in range(200):
        for worker in range(2):
            shares.took(worker, shares.size(worker), seconds(worker, shares.size(worker)))
        shares.round_over()
    ends = [seconds(worker, shares.size(worker)) for worker in range(2)]
    best = min(max(seconds(0, n), seconds(1, 64 - n)) for n in range(1, 64))
    assert max(ends) <= 1.1 * best, [shares.size(worker) for worker in range(2)]


def test_equal_speeds_and_those_within_the_band_change_nothing():
    shares, told = balanced(lambda number: [1.0, 1.04 if number % 3 else 0.97, 1.0], 200)
    assert not any(told) and [shares.size(worker) for worker in range(3)] == [100, 100, 100]


def test_a_worker_that_becomes_slow_gets_less_within_ten_rounds():
    shares, told = balanced(lambda number: [1, 1, 1 if number < 15 else 4], 20)
    assert [number for number, lines in enumerate(told, 1) if lines] == [20]
    assert shares.size(2) < 40 and sum(map(shares.size, range(3))) == 300


def test_one_slow_round_is_no_slow_worker():
    _, told = balanced(lambda number: [1, 9 if number == 19 else 1], 40)
    assert not any(told)


def test_when_a_worker_goes_the_others_take_its_share_at_once_and_give_it_back_when_it_comes():
    shares, _ = balanced([1, 2], 10, size=30)
    assert shares.left(0) == ["worker 1 gets 60 of 60 samples (1 of the fastest's speed)"]
    assert shares.joined(0) and [shares.size(0), shares.size(1)] == [40, 20]


def test_a_worker_that_has_not_come_yet_is_awaited():
    shares = Shares(SharePlan(sizes=(5, 5, 5), by_speed=True))
    assert not shares.joined(0) and shares.size(0) == 5


def test_who_was_never_measured_counts_as_the_median():
    shares = Shares(SharePlan(sizes=(10, 10, 10), by_speed=True))
    shares.took(0, 10, 1.0)
    shares.took(1, 10, 5.0)
    assert shares.speeds() == pytest.approx({0: 10.0, 1: 2.0, 2: 6.0})


def test_too_big_a_batch_halves_the_bound_of_its_worker_and_the_others_take_more():
    shares = Shares(SharePlan(sizes=(40, 40), by_speed=True, quantum=8))
    assert shares.too_big(0, 40) == 16
    assert [shares.size(0), shares.size(1)] == [16, 64]
    fixed = Shares(SharePlan(sizes=(40, 40)))
    assert fixed.too_big(0, 40) == 20 and [fixed.size(0), fixed.size(1)] == [20, 40]


def test_sizes_that_somebody_has_said_stay():
    shares = Shares(SharePlan(sizes=(12, 6, 3)))
    for _ in range(30):
        for worker in range(3):
            shares.took(worker, 5, 1.0)
        assert shares.round_over() == []
    assert shares.left(0) == [] and [shares.size(worker) for worker in range(3)] == [12, 6, 3]


@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 100)), max_size=120), st.integers(1, 4))
def test_the_same_pushes_give_the_same_shares_and_they_always_sum_up(pushes, quantum):
    def play():
        shares = Shares(SharePlan(sizes=(quantum * 7,) * 3, by_speed=True, quantum=quantum))
        seen = []
        for worker, seconds in pushes:
            shares.took(worker, shares.size(worker), seconds)
            shares.round_over()
            sizes = [shares.size(worker) for worker in range(3)]
            assert sum(sizes) == quantum * 21 and all(size >= quantum and size % quantum == 0 for size in sizes)
            seen.append(sizes)
        return seen

    assert play() == play()


def test_a_quantum_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="shared out among 3 workers by 8"):
        SharePlan(sizes=(10, 10, 10), by_speed=True, quantum=8)
