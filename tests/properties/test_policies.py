"""One contract for all policies, with all the options that each may have."""

import math
import os
from functools import partial
from random import Random

from hypothesis import given, settings, strategies as st

from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import StaleSynchronous
from evener.policy.collecting import Collecting
from evener.policy.enough import Enough
from evener.policy.events import Drop
from evener.policy.gathering import Gathering
from evener.policy.synchronous import Synchronous
from evener.testing.contracts.policies import PolicyContract
from evener.testing.histories import Game

#: `make check` sets QUICK.
HISTORIES = 100 if os.environ.get("QUICK") else 800


class TestAsync(PolicyContract):
    histories = HISTORIES

    def makers(self, version):
        return st.just(partial(Asynchronous, version))


class TestBounded(PolicyContract):
    histories = HISTORIES

    def makers(self, version):
        return st.builds(partial, st.just(StaleSynchronous), st.integers(0, 4), version=st.just(version))


class TestSync(PolicyContract):
    histories = 4 * HISTORIES  # two options that change everything

    def makers(self, version):
        return st.builds(
            partial, st.just(Synchronous), st.integers(1, 7),
            version=st.just(version), accumulate=st.booleans(), elastic=st.integers(0, 1),
        )  # fmt: skip


class TestCollecting(PolicyContract):
    histories = 2 * HISTORIES

    def makers(self, version):
        delays = st.one_of(st.integers(1, 9), st.just(math.inf))
        return st.builds(partial, st.just(Collecting), st.integers(1, 8), delays, version=st.just(version))


class TestQuorum(PolicyContract):
    histories = 2 * HISTORIES

    def makers(self, version):
        return st.builds(
            partial, st.just(Gathering), st.integers(1, 6), st.sampled_from([0.0, 0.5]), st.integers(1, 4),
            version=st.just(version), elastic=st.integers(0, 1),
        )  # fmt: skip


def floored(rule, least):
    """At least so many workers, of whatever policy."""
    return Enough(rule(), least)


class TestEnough(PolicyContract):
    """Every mode as `--workers 2..6` has it: sync and quorum average whoever lives, so many at least."""

    histories = 4 * HISTORIES

    def makers(self, version):
        def elastic(kind, *numbers):
            return st.integers(1, 4).flatmap(
                lambda least: st.tuples(
                    st.builds(partial, st.just(kind), *numbers, version=st.just(version), elastic=st.just(least)),
                    st.just(least),
                )
            )

        def plain(kind, *numbers):
            return st.tuples(st.builds(partial, st.just(kind), *numbers, version=st.just(version)), st.integers(1, 4))

        sync = elastic(Synchronous, st.integers(1, 7))
        quorum = elastic(Gathering, st.integers(1, 6), st.sampled_from([0.0, 0.5]), st.integers(1, 4))
        late = st.one_of(st.integers(1, 9), st.just(math.inf))
        others = [
            plain(Asynchronous), plain(StaleSynchronous, st.integers(0, 4)),
            plain(Collecting, st.integers(1, 8), late), plain(partial(Synchronous, accumulate=True), st.integers(1, 7)),
        ]  # fmt: skip
        return st.one_of(sync, quorum, *others).map(lambda made: partial(floored, *made))


def beside(first, second, choices, workers, like):
    """The same history to both: their answers are alike."""
    game = Game(first, workers)
    answer = first.on

    def both(event):
        decisions = answer(event)
        assert like(second.on(event)) == like(decisions)
        return decisions

    first.on = both
    game.play(choices)


alike = settings(derandomize=True, deadline=None, database=None, max_examples=HISTORIES)


@alike
@given(st.binary(min_size=40, max_size=160), st.integers(1, 6))
def test_one_gradient_however_old_is_async(choices, workers):
    beside(Asynchronous(), Collecting(1, math.inf), choices, workers, like=list)


@alike
@given(st.binary(min_size=40, max_size=160), st.integers(1, 6), st.integers(1, 6))
def test_a_quorum_without_grace_that_takes_nothing_late_is_sync_with_backups(choices, workers, needed):
    def like(decisions):
        return [one.handle if isinstance(one, Drop) else one for one in decisions]  # the reasons are in other words

    beside(Synchronous(needed), Gathering(needed, 0.0, 1), choices, workers, like=like)


def test_the_histories_reach_every_kind_of_decision():
    """Else the promises above could hold because nothing ever happens."""
    game = Game(Synchronous(2), workers=4)
    game.play(Random(1).choices(range(256), k=2000))

    assert min(game.seen[kind] for kind in ("applied", "stale", "orphan", "released")) > 50
