"""Batches of a worker's own size that no step uses: now and then they may be, not each second one."""

import math

import pytest

from evener.errors import ConfigError
from evener.loop.owner import Step, Supply
from evener.loop.passes import FEW, Passes
from evener.worker.exchange.exchange import Turn


class Owner:
    """Gives one stretch of three samples after the other."""

    here, under_way = False, 0

    def __init__(self):
        self.next = 0

    def _turn(self):
        self.next += 3
        return Turn(version=0, lease=-1, leases=[self.next - 3], count=3)

    def start(self, want):
        return self._turn()

    def step(self, step):
        return None, self._turn()

    def settled(self, *, land):
        return None

    def draw(self, want, *, unused=(), wait=False):
        return self._turn()


def batch(passes, *, steps):
    """The program takes a batch, and a step with it or not."""
    passes.hand.delivered(passes.hand.load())
    if steps:
        leases = passes.hand.take()
        passes.step(Step(group=0, really=lambda: None, closure=None, leases=leases, want=1, loss=math.nan, seconds=0.0))
    else:
        passes.wait()


def made():
    passes = Passes(
        Owner(), Supply(30), heard=lambda _: None, begun=lambda _: None, unused=lambda: None
    )  # fmt: skip
    passes.first()
    return passes


def test_a_program_that_takes_a_step_with_every_second_batch_is_refused_by_name():
    passes = made()
    with pytest.raises(ConfigError, match=f"no step with {FEW} of its batches, and {FEW} steps") as refused:
        for _ in range(2 * FEW):
            batch(passes, steps=True)
            batch(passes, steps=False)
    assert "--batch-sizes" in refused.value.why


def test_now_and_then_there_may_be_no_step():
    passes = made()
    for _ in range(2 * FEW):
        for _ in range(4):
            batch(passes, steps=True)
        batch(passes, steps=False)
