"""The sample order: every epoch visits every sample once, and any stretch can be computed by anybody."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from evener.data.order import Order, uniforms
from evener.errors import ConfigError, InputError

UNHURRIED = settings(deadline=None)  # a busy machine is no failure
SAMPLES = st.integers(1, 50)
SEEDS = st.integers(0, 2**64)


@UNHURRIED
@given(SAMPLES, SEEDS, st.integers(0, 5), st.booleans())
def test_each_epoch_holds_each_sample_once(samples, seed, epoch, shuffle):
    found = Order(samples, seed, shuffle).indices(epoch * samples, (epoch + 1) * samples)
    assert sorted(found.tolist()) == list(range(samples))


@UNHURRIED
@given(SAMPLES, SEEDS, st.lists(st.integers(0, 200), min_size=2, max_size=20))
def test_a_stretch_does_not_depend_on_what_was_asked_before(samples, seed, cuts):
    stream = Order(samples, seed).indices(0, 200).tolist()
    order = Order(samples, seed)
    for pair in pairwise(cuts):
        start, stop = sorted(pair)
        assert order.indices(start, stop).tolist() == stream[start:stop]


def test_the_permutation_is_numpys_of_seed_and_epoch():
    expected = np.random.Generator(np.random.PCG64([7, 2])).permutation(10)
    assert Order(10, seed=7).indices(20, 30).tolist() == expected.tolist()


def test_epochs_and_seeds_differ():
    order = Order(1000, seed=0)
    first = order.indices(0, 1000).tolist()
    assert first != order.indices(1000, 2000).tolist()
    assert first != Order(1000, seed=1).indices(0, 1000).tolist()


def test_unshuffled_is_the_data_sets_own_order():
    assert Order(3, seed=0, shuffle=False).indices(2, 7).tolist() == [2, 0, 1, 2, 0]


def test_indices_belong_to_the_caller():
    order = Order(5, seed=0)
    expected = order.indices(0, 5).tolist()
    order.indices(0, 5)[:] = 0
    assert order.indices(0, 5).tolist() == expected
    assert order.indices(0, 5).dtype == np.int64


def test_the_two_epochs_around_a_border_stay_at_hand():
    order = Order(10, seed=0)
    order.indices(25, 35)
    held = dict(order._permutations)
    for start in (22, 31, 28, 25):
        order.indices(start, start + 3)
    assert order._permutations.keys() == {2, 3}
    assert all(order._permutations[epoch] is permutation for epoch, permutation in held.items())
    order.indices(40, 41)
    assert order._permutations.keys() == {3, 4}


def test_nothing_to_order_and_negative_seeds_are_refused():
    with pytest.raises(InputError, match="0 samples"):
        Order(0, seed=0)
    with pytest.raises(ConfigError, match="seed=-1"):
        Order(1, seed=-1)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2)])
def test_a_stretch_that_is_none_is_our_own_mistake(start, stop):
    with pytest.raises(ValueError, match="not a stretch"):
        Order(5, seed=0).indices(start, stop)


@UNHURRIED
@given(st.integers(0, 2**62), st.integers(0, 10**12), st.integers(0, 20), st.integers(1, 20), st.integers(1, 11))
def test_a_position_has_its_own_chance_whatever_stretch_it_is_asked_for_with(seed, start, before, length, numbers):
    alone = uniforms(seed, start + before, start + before + length, numbers)
    among = uniforms(seed, start, start + before + length + 3, numbers)

    assert alone.shape == (length, numbers)
    assert (among[before : before + length] == alone).all()


def test_the_chance_is_uniform_and_of_no_two_positions_or_seeds_the_same():
    drawn = uniforms(0, 0, 4000, 5)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean(0) - 0.5).max() < 0.02
    assert abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.06
    assert len(np.unique(drawn)) == drawn.size
    assert not np.intersect1d(drawn, uniforms(1, 0, 4000, 5)).size
