"""A worker that hangs costs nothing but itself: its lease goes to another one, and it is named meanwhile."""

from __future__ import annotations

import pytest

from evener import errors
from evener.commands.account import account
from evener.report import Line
from evener.testing import Cluster, row_recipe

STALL = 100.0


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(**options):
        everything = {"train_steps": 3, "stall_timeout": STALL} | options
        made.append(Cluster(row_recipe(), tmp_path / "run", **everything))
        return made[-1]

    yield make
    for one in made:
        one.close()


def hung(run, worker, *, leases=3):
    """A worker that has pushed so often, quickly, and says no more."""
    for _ in range(leases):
        worker.push(1.0)


@pytest.mark.parametrize("ps", [1, 3])
def test_the_last_batch_of_a_run_does_not_wait_for_a_worker_that_hangs(cluster, ps):
    run = cluster(ps=ps, train_steps=6)
    slow, quick = run.started(0, 1)
    hung(run, slow, leases=2)
    for _ in range(3):
        quick.push(1.0)
    assert (run.step, quick.turn) == (5, None), "no batch is left but the one that hangs"
    run.tick(STALL / 4)

    assert any("worker:0 is gone" in line.text and "has not given lease" in line.text for line in run.reported(Line))
    assert quick.listen() is not None
    told = quick.push(1.0)
    assert (run.step, told.stop) == (6, "reached step 6")
    quick.leave()
    run.finish()
    run.close()
    assert account(run.leader.setup.saver._store.directory.parent).clean


def test_what_it_says_later_is_of_a_life_that_has_ended(cluster):
    run = cluster(train_steps=99)
    slow, quick = run.started(0, 1)
    hung(run, slow)
    quick.push(1.0)
    step = run.step
    run.tick(STALL / 4)
    with pytest.raises(errors.PeerGone):
        slow.say(0, slow.message(), payload=True)
    run.settle()
    assert run.step == step


@pytest.mark.parametrize("options", [{"mode": "bounded", "staleness": 0}, {"mode": "sync", "elastic": True}])
def test_modes_that_wait_for_the_slowest_do_not_wait_for_one_that_hangs(cluster, options):
    run = cluster(train_steps=99, **options)
    slow, quick = run.started(0, 1)
    for _ in range(3):
        slow.push(1.0)
        quick.push(1.0)
        slow.listen()
    before = run.step
    assert quick.push(1.0) is None, "it waits for the slow one"
    run.tick(STALL / 4)
    assert quick.listen() is not None
    quick.push(1.0)
    assert run.step > before + 1 or options["mode"] == "sync"


def test_lockstep_needs_that_very_worker_and_says_so(cluster):
    run = cluster(mode="sync", train_steps=99)
    slow, quick = run.started(0, 1)
    for _ in range(3):
        slow.push(1.0)
        quick.push(1.0)
        slow.listen()
    quick.push(1.0)
    run.tick(STALL / 2)
    assert 0 in run.leader.links.seats
    assert "worker 0" in run.leader.waiting_for()


def test_every_wait_has_a_name(cluster):
    """It once said "waiting for ."."""
    run = cluster(train_steps=99)
    run.started(0, 1)
    run.clock.advance(STALL - 1)
    assert run.leader.waiting_for() == "worker:0 to give lease 0 (99 s), worker:1 to give lease 1 (99 s)"
