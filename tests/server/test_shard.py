"""A shard holds gradients by handle and applies them; it decides nothing."""

import pytest
import torch
from training import Net, gradient_at, recipe_of, shards_of, slot_of, whole_of

from evener.server.shard import Shard
from evener.wire.messages import Push
from evener.wire.words import Identity


def push(worker=0, lease=0, seq=1, epoch=1):
    return Push(Identity(worker, epoch, 1), seq=seq, version=4, lease=lease, loss=0.5, examples=100)


@pytest.fixture
def shard():
    (state,) = shards_of(recipe_of(ema_decay=0.9))
    return Shard(state)


def gradient(shard, number=0):
    return slot_of(shard.state, gradient_at(number, Net()))


def test_a_held_gradient_is_known_by_its_handle_and_its_key(shard):
    first = shard.hold(push(worker=0, seq=7, epoch=2), gradient(shard))
    second = shard.hold(push(worker=1), gradient(shard))

    assert first != second
    assert shard.held[first].key == (0, 2, 7)
    assert shard.state.step == 0  # nothing was applied


def test_a_handle_is_never_given_twice(shard):
    seen = []
    for number in range(5):
        seen.append(shard.hold(push(), gradient(shard)))
        (shard.drop if number % 2 else lambda handle: shard.apply([handle]))(seen[-1])

    assert len(set(seen)) == 5
    assert shard.held == {}


def test_applying_one_gradient_is_one_update_with_it(shard):
    (other,) = shards_of(recipe_of(ema_decay=0.9))
    other.apply(gradient(shard))
    applied = push(lease=3)

    assert shard.apply([shard.hold(applied, gradient(shard))]) == [applied]
    assert shard.state.step == 1
    for name, tensor in whole_of([shard.state]).items():
        torch.testing.assert_close(tensor, whole_of([other])[name], rtol=0, atol=0)


def test_several_gradients_are_summed_in_the_order_of_their_leases_whatever_their_arrival():
    """Floating-point sums depend on their order; arrival differs from run to run, leases do not."""
    results = []
    for arrival in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        (state,) = shards_of(recipe_of())
        shard = Shard(state)
        handles = [shard.hold(push(worker=lease, lease=lease), gradient(shard, lease)) for lease in arrival]
        pushes = shard.apply(handles)
        assert [each.lease for each in pushes] == [0, 1, 2]
        results.append(bytes(state.parameters.parts[0]))

    assert results[0] == results[1] == results[2]


def test_one_update_takes_one_step_however_many_gradients_it_averages(shard):
    handles = [shard.hold(push(worker=w, lease=w), gradient(shard, w)) for w in range(4)]
    shard.apply(handles)

    assert (shard.state.step, shard.held) == (1, {})


def test_a_dropped_gradient_leaves_no_trace(shard):
    before = [bytes(part) for part in shard.state.parameters.parts]
    dropped = push(lease=9)

    assert shard.drop(shard.hold(dropped, gradient(shard))) == dropped
    assert [bytes(part) for part in shard.state.parameters.parts] == before
    assert shard.held == {}


def test_a_gradient_that_is_not_finite_is_held_with_the_name_of_its_tensor(shard):
    slot = gradient(shard)
    next(view for piece, view in slot.named() if piece.key == "second.bias")[2] = float("nan")
    before = [bytes(part) for part in shard.state.parameters.parts]

    handle = shard.hold(push(worker=3, lease=12), slot)
    assert shard.held[handle].bad == "second.bias"
    assert [bytes(part) for part in shard.state.parameters.parts] == before


# --- memory that is the worker's


def test_a_detached_gradient_outlives_what_the_worker_writes_next(shard):
    (other,) = shards_of(recipe_of(ema_decay=0.9))
    other.apply(gradient(shard))
    slot = gradient(shard)
    handle = shard.hold(push(worker=0), slot)

    shard.released(worker=0)
    for part in slot.parts:
        part[:] = bytes(len(part))  # the worker computes its next gradient

    shard.apply([handle])
    for name, tensor in whole_of([shard.state]).items():
        torch.testing.assert_close(tensor, whole_of([other])[name], rtol=0, atol=0)


def test_only_this_workers_gradients_are_copied_and_only_once(shard):
    mine = shard.hold(push(worker=0), gradient(shard))
    theirs = shard.hold(push(worker=1), gradient(shard))
    before = shard.held[theirs].slot

    shard.released(worker=0)
    copy = shard.held[mine].slot
    shard.released(worker=0)

    assert shard.held[mine].slot is copy
    assert (shard.held[mine].borrowed, shard.held[theirs].borrowed) == (False, True)
    assert shard.held[theirs].slot is before


# --- what a pull shows


def test_a_pull_shows_parameters_averages_and_the_last_gradient(shard):
    slots = [gradient(shard, number) for number in range(2)]
    own = gradient(shard, 5)

    shard.apply([shard.hold(push(), slots[0])])
    assert shard.parts("parameters", own) is shard.state.parameters.parts
    assert shard.parts("averages", own) is shard.state.averages.parts
    assert shard.parts("gradients", own) is own.parts  # one gradient was not averaged: it is the worker's own

    shard.apply([shard.hold(push(worker=w, lease=w), slot) for w, slot in enumerate(slots)])
    assert shard.parts("gradients", own) is shard.state.averaged.parts


def test_averages_that_are_not_kept_are_the_parameters():
    (state,) = shards_of(recipe_of())

    assert Shard(state).parts("averages", None) is state.parameters.parts
