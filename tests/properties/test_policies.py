"""One contract for all policies: thousands of legal histories, the promises of `histories` after every answer."""

import math
import os
from random import Random

import pytest
from histories import Game, play
from hypothesis import given, settings, strategies as st

from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import StaleSynchronous
from evener.policy.collecting import Collecting
from evener.policy.events import Drop
from evener.policy.gathering import Gathering
from evener.policy.synchronous import Synchronous

# Derandomized: a failure belongs to the change that made it, never to the day. `make check` sets QUICK.
HISTORIES = 100 if os.environ.get("QUICK") else 800
contract = settings(derandomize=True, deadline=None, database=None, max_examples=HISTORIES)
choices = st.binary(min_size=40, max_size=160)
crowds = st.integers(1, 6)


@contract
@given(choices, crowds)
def test_async_keeps_its_promises(history, workers):
    play(Asynchronous(), history, workers=workers)


@contract
@given(choices, crowds, st.integers(0, 4))
def test_bounded_keeps_its_promises(history, workers, staleness):
    play(StaleSynchronous(staleness), history, workers=workers)


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@contract
@given(history=choices, workers=crowds, aggregate=st.integers(1, 7))
def test_sync_keeps_its_promises(history, workers, aggregate, accumulate, elastic):
    play(Synchronous(aggregate, accumulate=accumulate, elastic=elastic), history, workers=workers)


@contract
@given(choices, crowds, st.integers(1, 8), st.one_of(st.integers(1, 9), st.just(math.inf)))
def test_collecting_keeps_its_promises(history, workers, gradients, delay):
    play(Collecting(gradients, delay), history, workers=workers)


@pytest.mark.parametrize("elastic", [False, True])
@contract
@given(choices, crowds, st.integers(1, 6), st.sampled_from([0.0, 0.5]), st.integers(1, 4))
def test_quorum_keeps_its_promises(elastic, history, workers, needed, grace, delay):
    play(Gathering(needed, grace, delay, elastic=elastic), history, workers=workers)


@contract
@given(choices, crowds)
def test_one_gradient_however_old_is_async(history, workers):
    """The same events, the same decisions."""
    game = Game(Asynchronous(), workers)
    other = Collecting(1, math.inf)
    answer = game.policy.on

    def both(event):
        decisions = answer(event)
        assert other.on(event) == decisions
        return decisions

    game.policy.on = both
    game.play(history)


@contract
@given(choices, crowds, st.integers(1, 6))
def test_a_quorum_without_grace_that_takes_nothing_late_is_sync_with_backups(history, workers, needed):
    game = Game(Synchronous(needed), workers)
    other = Gathering(needed, 0.0, 1)
    answer = game.policy.on

    def both(event):
        decisions = answer(event)
        theirs = other.on(event)
        assert [one for one in theirs if not isinstance(one, Drop)] == [
            one for one in decisions if not isinstance(one, Drop)
        ]
        assert [one.handle for one in theirs if isinstance(one, Drop)] == [
            one.handle for one in decisions if isinstance(one, Drop)
        ]
        return decisions

    game.policy.on = both
    game.play(history)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Asynchronous(7),
        lambda: StaleSynchronous(1, version=7),
        lambda: Synchronous(2, version=7),
        lambda: Collecting(3, 2, version=7),
        lambda: Gathering(2, 0.5, 2, version=7),
    ],
    ids=["async", "bounded", "sync", "collecting", "quorum"],
)
def test_a_resumed_policy_counts_on_from_its_version(make):
    for seed in range(20):
        policy = make()
        play(policy, Random(seed).choices(range(256), k=100))
        assert policy.version > 7


@pytest.mark.parametrize(
    "make",
    [
        Asynchronous,
        lambda: StaleSynchronous(2),
        lambda: Synchronous(2),
        lambda: Synchronous(3, accumulate=True, elastic=True),
        lambda: Collecting(3, 2),
        lambda: Gathering(2, 0.5, 2),
    ],
    ids=["async", "bounded", "sync", "sync accumulating", "collecting", "quorum"],
)
def test_the_same_events_give_the_same_decisions(make):
    told = []
    first = make()
    answer = first.on
    first.on = lambda event: told.append((event, answer(event))) or told[-1][1]
    play(first, Random(5).choices(range(256), k=300))

    second = make()
    for event, decisions in told:
        assert second.on(event) == decisions
    assert second.waiting_for() == first.waiting_for()


def test_the_histories_reach_every_kind_of_decision():
    """Else the promises above could hold because nothing ever happens."""
    game = Game(Synchronous(2), workers=4)
    game.play(Random(1).choices(range(256), k=2000))

    assert min(game.seen[kind] for kind in ("applied", "stale", "orphan", "released")) > 50
