"""One contract for all policies, with all the options that each may have."""

import os
from functools import partial
from random import Random

from hypothesis import strategies as st

from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import Bounded
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
        return st.builds(partial, st.just(Bounded), st.integers(0, 4), version=st.just(version))


class TestSync(PolicyContract):
    histories = 4 * HISTORIES  # two options that change everything

    def makers(self, version):
        return st.builds(
            partial, st.just(Synchronous), st.integers(1, 7),
            version=st.just(version), accumulate=st.booleans(), elastic=st.booleans(),
        )  # fmt: skip


def test_the_histories_reach_every_kind_of_decision():
    """Else the promises above could hold because nothing ever happens."""
    game = Game(Synchronous(2), workers=4)
    game.play(Random(1).choices(range(256), k=2000))

    assert min(game.seen[kind] for kind in ("applied", "stale", "orphan", "released")) > 50
