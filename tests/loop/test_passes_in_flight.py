"""What schedulers count of steps that are on their way: each once, when it is sent, whatever becomes of it."""

import math

import pytest

from evener.loop.owner import Step, Supply
from evener.loop.passes import Passes
from evener.worker.exchange.exchange import Turn


class Late:
    """Answers a step with the turn of the one before. `versions`: of each step, and whether its gradient was sent."""

    here, under_way = False, 0

    def __init__(self, *versions):
        self.versions = list(versions)

    def start(self, want):
        return Turn(version=7, lease=-1)

    def step(self, step):
        version, self.under_way = self.versions.pop(0)
        return None, Turn(version=version, lease=-1, stop="" if self.under_way else "interrupted")

    def settled(self, *, land):
        return None

    def draw(self, want, *, unused=(), wait=False):
        raise AssertionError


@pytest.mark.parametrize(
    ("versions", "moved"),
    [
        ([(7, 1), (8, 1), (9, 1)], [1, 1, 1]),  # alone: as in a plain loop
        ([(7, 1), (10, 1), (12, 1)], [1, 3, 2]),  # others make updates too
        ([(7, 1), (8, 1), (8, 0)], [1, 1, 0]),  # the second was sent and not taken: it was counted
    ],
)
def test_each_step_is_counted_once(versions, moved):
    passes = Passes(Late(*versions), Supply(), heard=lambda _: None, begun=lambda _: None, unused=lambda: None)
    passes.first()
    found = []
    for _ in moved:
        passes.step(Step(group=0, really=lambda: None, closure=None, leases=[], want=0, loss=math.nan, seconds=0.0))
        found.append(passes.moved)
    assert found == moved
    assert passes.counted == 7 + sum(moved)
