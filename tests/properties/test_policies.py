"""One contract for all policies: thousands of legal histories, the promises of `histories` after every answer."""

import os
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import Bounded
from evener.policy.synchronous import Synchronous
from evener.testing.histories import Game, play

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
    play(Bounded(staleness), history, workers=workers)


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@contract
@given(history=choices, workers=crowds, aggregate=st.integers(1, 7))
def test_sync_keeps_its_promises(history, workers, aggregate, accumulate, elastic):
    play(Synchronous(aggregate, accumulate=accumulate, elastic=elastic), history, workers=workers)


@pytest.mark.parametrize(
    "make",
    [lambda: Asynchronous(7), lambda: Bounded(1, version=7), lambda: Synchronous(2, version=7)],
    ids=["async", "bounded", "sync"],
)
def test_a_resumed_policy_counts_on_from_its_version(make):
    for seed in range(20):
        policy = make()
        play(policy, Random(seed).choices(range(256), k=100))
        assert policy.version > 7


@pytest.mark.parametrize(
    "make",
    [Asynchronous, lambda: Bounded(2), lambda: Synchronous(2), lambda: Synchronous(3, accumulate=True, elastic=True)],
    ids=["async", "bounded", "sync", "sync accumulating"],
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
