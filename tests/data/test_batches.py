"""Leases: the batch of lease k follows from (seed, k), whoever takes it."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from evener.data.batches import Batches, Samples
from evener.data.dataset import Augmented, Tensors
from evener.errors import ConfigError

UNHURRIED = settings(deadline=None)  # a busy machine is no failure
SAMPLES = st.integers(1, 40)
SIZES = st.integers(1, 30)


def numbers(samples):
    return Tensors(torch.arange(samples), torch.arange(samples))


@UNHURRIED
@given(SAMPLES, SIZES, st.integers(0, 1000), st.integers(1, 3))
def test_every_epoch_covers_every_sample_once_whatever_the_batch_size(samples, batch_size, seed, epochs):
    batches = Batches(numbers(samples), batch_size=batch_size, seed=seed)
    leases = -(-epochs * samples // batch_size)
    stream = torch.cat([batches.batch(lease)[1] for lease in range(leases)]).tolist()

    for epoch in range(epochs):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


@UNHURRIED
@given(SAMPLES, SIZES, st.integers(1, 5), st.integers(0, 20))
def test_the_leases_of_one_round_are_one_lease_of_the_whole_batch(samples, batch_size, workers, round_):
    data = numbers(samples)
    small = Batches(data, batch_size=batch_size, seed=3)
    large = Batches(data, batch_size=batch_size * workers, seed=3)
    parts = [small.batch(round_ * workers + worker)[1] for worker in range(workers)]

    assert torch.equal(torch.cat(parts), large.batch(round_)[1])


@UNHURRIED
@given(SIZES, st.permutations(range(10)))
def test_a_batch_does_not_depend_on_the_leases_taken_before(batch_size, leases):
    expected = [Batches(numbers(17), batch_size=batch_size, seed=5).batch(lease)[1] for lease in range(10)]
    batches = Batches(numbers(17), batch_size=batch_size, seed=5)
    assert all(torch.equal(batches.batch(lease)[1], expected[lease]) for lease in leases)


@UNHURRIED
@given(SAMPLES, SIZES)
def test_evaluation_sees_every_sample_once_in_order(samples, batch_size):
    seen = [target for _, target in Samples(numbers(samples), batch_size)]

    assert torch.cat(seen).tolist() == list(range(samples))
    assert all(len(target) == batch_size for target in seen[:-1])


def test_steps_per_epoch_need_not_be_whole():
    assert Batches(numbers(1437), batch_size=100, seed=0).steps_per_epoch == pytest.approx(14.37)


def test_empty_batches_are_refused():
    with pytest.raises(ConfigError, match="batch_size=0"):
        Batches(numbers(3), batch_size=0, seed=0)
    with pytest.raises(ConfigError, match="batch_size=-1"):
        Samples(numbers(3), -1)


# --- stretches of samples


class Drawn(Tensors):
    """Every batch begins with a number of the global generator."""

    thread_safe = False

    def batch(self, indices):
        return torch.rand(1), indices


def test_a_stretch_is_the_same_samples_as_batches_over_it_are():
    batches = Batches(Tensors(torch.arange(10.0), torch.zeros(10)), batch_size=4, seed=3)
    whole = torch.cat([batches.batch(lease)[0] for lease in range(3)])
    assert torch.equal(torch.cat([batches.stretch(0, 7)[0], batches.stretch(7, 5)[0]]), whole)


def test_what_is_random_in_a_stretch_follows_from_the_seed_and_its_first_sample():
    batches = Batches(Drawn(torch.arange(10.0), torch.zeros(10)), batch_size=4, seed=3)
    first = batches.stretch(4, 3)[0]
    assert torch.equal(batches.stretch(4, 5)[0], first)
    assert not torch.equal(batches.stretch(5, 3)[0], first)


def test_a_sample_is_distorted_alike_in_whatever_stretch_it_is():
    data = Augmented(torch.zeros(10, 1), torch.zeros(10), augment=lambda inputs, chance: inputs + chance, numbers=1)
    batches = Batches(data, batch_size=4, seed=3)
    parts = torch.cat([batches.stretch(0, 3)[0], batches.stretch(3, 9)[0]])
    assert torch.equal(parts, batches.stretch(0, 12)[0])
