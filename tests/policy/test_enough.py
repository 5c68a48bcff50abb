"""A run of at least so many workers, in any mode: what is computed is used, and nobody is sent on while fewer live."""

import pytest

from evener.modes import MODES
from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import StaleSynchronous
from evener.policy.collecting import Collecting
from evener.policy.enough import Enough
from evener.policy.events import Apply, Drop, Joined, Left, Pushed, Recall, Release
from evener.settings import make


def told(policy, *events):
    """What it says to the last of these."""
    return [policy.on(event) for event in events][-1]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_of_2_to_8_begins_with_two_in_every_mode_and_says_whom_it_waits_for(mode):
    policy = make({"ps": 1, "workers": "2..8", "mode": mode}).start(0)

    assert policy.waiting_for() == "waits for 2 workers: none is here, start 2 more workers"
    assert policy.on(Joined(5)) == []
    assert policy.waiting_for() == "waits for 2 workers: only worker 5 is here, start another worker"
    assert policy.on(Joined(1)) == [Release(1), Release(5)]
    assert "waits for" not in policy.waiting_for()


def test_two_of_eight_make_an_update_of_two_gradients_in_sync():
    policy = make({"ps": 1, "workers": "2..8", "mode": "sync"}).start(0)

    assert told(policy, Joined(0), Joined(1), Pushed(0, 0, 7)) == []
    assert policy.on(Pushed(1, 0, 8)) == [Apply((7, 8)), Release(0), Release(1)]
    assert told(policy, Joined(2), Pushed(0, 1, 9), Pushed(1, 1, 10)) == []
    assert policy.on(Pushed(2, 1, 11)) == [Apply((9, 10, 11)), Release(0), Release(1), Release(2)]


def test_no_update_is_of_fewer_gradients_in_sync_when_one_has_gone():
    policy = make({"ps": 1, "workers": "2..3", "mode": "sync"}).start(0)

    assert told(policy, Joined(0), Joined(1), Pushed(0, 0, 7), Left(1)) == []
    assert policy.waiting_for().startswith("waits for 2 workers: only worker 0 is here")
    assert policy.on(Joined(1)) == [Release(1)]
    assert policy.on(Pushed(1, 0, 8)) == [Apply((7, 8)), Release(0), Release(1)]


def test_what_was_under_way_is_used_and_then_all_wait():
    policy = Enough(Asynchronous(), 2)

    assert told(policy, Joined(0), Joined(1), Left(0)) == []
    assert policy.on(Pushed(1, 0, 7)) == [Apply((7,))]
    assert (policy.version, policy.waiting_for()[:19]) == (1, "waits for 2 workers")
    assert policy.on(Joined(2)) == [Release(1), Release(2)]


def test_who_goes_on_again_has_the_newest_parameters():
    """The rule has released it at version 1, and one more update is made while it is withheld."""
    policy = Enough(Collecting(1, 1), 3)
    told(policy, Joined(0), Joined(1), Joined(2))

    assert policy.on(Pushed(0, 0, 7)) == [Apply((7,)), Recall(1), Recall(2), Release(0)]
    told(policy, Left(2))
    assert policy.on(Pushed(0, 1, 8)) == [Apply((8,))]
    drop, *rest = policy.on(Pushed(1, 0, 9))
    assert isinstance(drop, Drop) and rest == []
    assert policy.on(Joined(2)) == [Release(0), Release(1), Release(2)]
    assert policy.on(Pushed(1, 2, 10)) == [Apply((10,)), Recall(0), Recall(2), Release(1)]


def test_nobody_is_recalled_who_computes_nothing():
    policy = Enough(Collecting(1, 1), 3)
    told(policy, Joined(0), Joined(1), Joined(2), Left(2), Pushed(0, 0, 7))

    drop, *rest = policy.on(Pushed(1, 0, 8))
    assert isinstance(drop, Drop) and rest == [], "worker 0 is withheld"


def test_a_loop_that_has_ended_is_not_waited_for():
    policy = Enough(StaleSynchronous(4), 2)

    assert told(policy, Joined(0), Joined(1), Left(0, ended=True)) == []
    assert policy.on(Pushed(1, 0, 7)) == [Apply((7,)), Release(1)]
    assert policy.waiting_for() == ""
