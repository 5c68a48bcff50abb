"""Does the contract of test_policies.py see anything? Policies with one bug planted in each must be flagged by it."""

from collections import Counter
from pathlib import Path
from random import Random

import histories
import pytest

from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import StaleSynchronous
from evener.policy.events import Drop, Joined, Left, Pushed, Release
from evener.policy.synchronous import Synchronous


class KeepsWorkersWaiting(Asynchronous):
    """Releases a worker only after every second push."""

    def on(self, event):
        decisions = super().on(event)
        return decisions[:1] if isinstance(event, Pushed) and self.version % 2 else decisions


class ForgetsToCount(Asynchronous):
    """Applies, but does not move the version."""

    def on(self, event):
        decisions = super().on(event)
        self.version = 0
        return decisions


class TakesStalePushes(Synchronous):
    """Counts a gradient of an older version as fresh."""

    def _drop(self, worker, version, handle):
        self._late.discard(worker)
        self._fresh.add(worker)
        return self._hold(worker, handle, 0)


class DropsWithoutRelease(Synchronous):
    """Lets the sender of a stale push wait for the next update, as TensorFlow's tokens may."""

    def _drop(self, worker, version, handle):
        decisions = super()._drop(worker, version, handle)
        self._fresh.remove(worker)
        self._waiting.add(worker)
        return decisions[:1]


class TakesTwoOfOneWorker(Synchronous):
    """Releases a worker again within the round though nobody asked it to accumulate."""

    def _hold(self, worker, handle, group):
        return super()._hold(worker, handle, group) or self._release([worker])


class ReleasesNobody(Synchronous):
    """Takes the step, and tells no worker."""

    def _update(self, *group):
        return super()._update(*group)[:1]


class ReleasesOnlyOne(Synchronous):
    """Releases only the last of the workers that wait for an update."""

    def _release(self, workers):
        return super()._release(list(workers)[-1:])


class AveragesTheSameTwice(Synchronous):
    """Keeps the gradients of the last update in the book."""

    def _update(self, *group):
        held, groups = dict(self._held), dict(self._group)
        decisions = super()._update(*group)
        self._held.update(dict(list(held.items())[:1]))
        self._group.update(dict(list(groups.items())[:1]))
        return decisions


class AveragesTheDeparted(Synchronous):
    """Keeps the gradients of a worker that left."""

    def _leave(self, worker, ended):
        held, groups = dict(self._held), dict(self._group)
        decisions = super()._leave(worker, ended)
        self._held, self._group = held, groups
        return [decision for decision in decisions if not isinstance(decision, Drop)]


class AccumulatesOnceTooOften(Synchronous):
    """Releases one worker more than the round needs."""

    def _room(self):
        return super()._room() + 1


class LosesTheShareOfTheDeparted(Synchronous):
    """Accumulates, but does not hand the share of a worker that left to those who wait."""

    def _leave(self, worker, ended):
        self.accumulate = False
        decisions = super()._leave(worker, ended)
        self.accumulate = True
        return decisions


class ShrinksTooLate(Synchronous):
    """Elastic, but does not see that the worker that left was the last that was awaited."""

    def _leave(self, worker, ended):
        self.elastic = False
        decisions = super()._leave(worker, ended)
        self.elastic = True
        return decisions


class IgnoresALeft(StaleSynchronous):
    """Waits for ever for a worker that left."""

    def on(self, event):
        if isinstance(event, Left):
            del self._clock[event.worker]  # but not from the clocks that the minimum is taken of
            self._waiting.discard(event.worker)
            return []
        return super().on(event)


class OneStepTooFar(StaleSynchronous):
    """Releases at staleness + 1."""

    def _release(self, candidates):
        self._waiting -= candidates
        return [Release(worker) for worker in sorted(candidates)]


class JoinsAtZero(StaleSynchronous):
    """Starts the clock of a late joiner at zero, so that all others stop until it has caught up."""

    def on(self, event):
        decisions = super().on(event)
        if isinstance(event, Joined):
            self._remove_clock(event.worker)
            self._slowest = 0
            self._set_clock(event.worker, 0)
        return decisions


class ForgetsTheSlowest(StaleSynchronous):
    """Compares with the crowd, not with the slowest."""

    def _find_slowest(self):
        moved = super()._find_slowest()
        self._slowest = max(Counter(self._at).elements(), default=0)
        return moved


PLANTED = {
    "keeps workers waiting": (KeepsWorkersWaiting, lambda policy: policy()),
    "forgets to count": (ForgetsToCount, lambda policy: policy()),
    "takes stale pushes": (TakesStalePushes, lambda policy: policy(2)),
    "drops without release": (DropsWithoutRelease, lambda policy: policy(2)),
    "takes two of one worker": (TakesTwoOfOneWorker, lambda policy: policy(3)),
    "releases nobody": (ReleasesNobody, lambda policy: policy(2)),
    "releases only one": (ReleasesOnlyOne, lambda policy: policy(2)),
    "averages the same twice": (AveragesTheSameTwice, lambda policy: policy(2)),
    "averages the departed": (AveragesTheDeparted, lambda policy: policy(3)),
    "accumulates once too often": (AccumulatesOnceTooOften, lambda policy: policy(6, accumulate=True)),
    "loses the share of the departed": (LosesTheShareOfTheDeparted, lambda policy: policy(5, accumulate=True)),
    "shrinks too late": (ShrinksTooLate, lambda policy: policy(4, elastic=True)),
    "ignores a left": (IgnoresALeft, lambda policy: policy(1)),
    "one step too far": (OneStepTooFar, lambda policy: policy(1)),
    "joins at zero": (JoinsAtZero, lambda policy: policy(1)),
    "forgets the slowest": (ForgetsTheSlowest, lambda policy: policy(1)),
}


def search(make, *, histories_played):
    """Play histories from fixed seeds until one is flagged, if any is."""
    for seed in range(histories_played):
        histories.play(make(), Random(seed).choices(range(256), k=120))


@pytest.mark.parametrize(("mutant", "configured"), PLANTED.values(), ids=PLANTED)
def test_the_contract_flags_the_bug(mutant, configured):
    with pytest.raises(AssertionError) as flagged:
        search(lambda: configured(mutant), histories_played=100)

    # By the contract, not by an assert inside the policy, which would say nothing about the contract's sight.
    assert Path(flagged.traceback[-1].path) == Path(histories.__file__), flagged.value


@pytest.mark.parametrize(("mutant", "configured"), PLANTED.values(), ids=PLANTED)
def test_the_same_policy_without_the_bug_passes(mutant, configured):
    (healthy,) = mutant.__bases__
    search(lambda: configured(healthy), histories_played=20)
