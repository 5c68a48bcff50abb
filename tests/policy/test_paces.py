"""A worker's pace: a straight line through the sizes that it has computed."""

import pytest

from evener.policy.paces import MEMORY, Pace, Paced


def paced(*batches):
    one = Paced()
    for samples, seconds in batches:
        one.took(samples, seconds)
    return one.pace()


def test_of_one_size_all_counts_as_samples():
    assert paced((10, 3.0), (10, 3.0)) == Pace(0.0, 0.3)


def test_two_sizes_tell_what_any_batch_costs():
    assert paced((10, 3.0), (20, 5.0)) == Pace(1.0, 0.2)
    assert paced((10, 3.0), (15, 9.0), (20, 5.0)) == Pace(1.0, 0.2), "those farthest apart"


def test_a_size_counts_by_the_median_of_its_last_times():
    assert paced((10, 99.0), (10, 3.0), (10, 3.0), (20, 5.0)) == Pace(1.0, 0.2)


@pytest.mark.parametrize(
    "batches",
    [
        ((10, 3.0), (11, 9.0)),  # too near each other to tell
        ((10, 9.0), (20, 6.0)),  # more samples in less time: the machine has changed
        ((10, 1.0), (20, 9.0)),  # less than nothing for a batch without samples
    ],
)
def test_what_cannot_be_a_line_is_a_rate_of_the_newest_size(batches):
    samples, seconds = batches[-1]
    assert paced(*batches) == Pace(0.0, seconds / samples)


def test_old_sizes_are_forgotten():
    assert paced((10, 3.0), *[(20, 9.0)] * MEMORY) == Pace(0.0, 0.45)
    assert paced((1, 3.0), (30, 1.0), (31, 1.0), (32, 1.0), (33, 1.0)) == Pace(0.0, 1 / 33)
