"""Programs with their own loops and batches of their own size, on real servers, one message at a time."""

from __future__ import annotations

import pytest

from evener import errors
from evener.ledger import path_of
from evener.ledger.lines import Skipped, Update
from evener.ledger.reading import read
from evener.testing import Cluster, Scripted, row_recipe
from evener.wire.messages import Draw


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(**options):
        everything = {"mode": "sync", "script": "loop.py", "batches": 10, "batch_sizes": (3, 1), "workers": 2} | options
        made.append(Cluster(row_recipe(), tmp_path / "run", **everything))
        return made[-1]

    yield make
    for one in made:
        one.close()


def started(run, *indices):
    workers = [Scripted(run, index) for index in indices]
    for worker in workers:
        worker.greet()
        worker.join()
    return workers


def lines(tmp_path):
    return [line for _, line in read(path_of(tmp_path / "run"))]


def test_each_has_a_stretch_of_its_size_and_a_round_is_all_of_them(cluster):
    run = cluster()
    a, b = started(run, 0, 1)
    assert ((a.hand, a.size), (b.hand, b.size)) == (([0], 3), ([3], 1))

    assert a.push(1.0) is None, "its step returns with the round's parameters"
    assert b.push(1.0).version == 1
    assert a.listen().version == 1
    assert ((a.hand, a.size), (b.hand, b.size)) == (([4], 3), ([7], 1))


def test_the_last_round_of_an_epoch_is_of_fewer_samples_and_the_next_begins_whole(cluster, tmp_path):
    run = cluster()
    a, b = started(run, 0, 1)
    for _ in range(3):  # 4 + 4 + 2 samples
        for worker in (a, b):
            if worker.hand:
                worker.push(1.0)
        for worker in (a, b):
            worker.listen()
    assert run.step == 3
    assert a.hand == [10] and a.size == 3
    entries = [[entry[0] for entry in line.entries] for line in lines(tmp_path) if isinstance(line, Update)]
    assert entries == [[(0, 3), (3, 4)], [(4, 7), (7, 8)], [(8, 10)]]


def test_a_stretch_that_no_step_has_used_is_named_in_the_ledger_and_its_worker_goes_on(cluster, tmp_path):
    run = cluster(mode="async")
    (a,) = started(run, 0)
    assert a.draw(wait=True, unused=[0]).leases == [3]

    skipped = [line.lease for line in lines(tmp_path) if isinstance(line, Skipped)]
    assert skipped == [(0, 3)]
    assert isinstance(a.refused(Draw(a.identity, 1, unused=[0])), errors.ProtocolError)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"leases": [], "count": 0}, "took a step without a batch"),
        ({"count": 2}, "names 2 samples from 0 on"),
        ({"examples": 2}, "says 2 samples, and has 3"),
        ({"group": 1}, "has several optimizers"),
        ({"version": 7}, "out of turn"),
    ],
)
def test_what_is_not_of_its_stretch_is_refused(cluster, changes, complaint):
    run = cluster()
    a, _ = started(run, 0, 1)
    assert complaint in str(a.refused(a.message(**changes), payload=True))


def test_who_begins_an_epoch_has_no_deadline_until_its_next_gradient(cluster):
    run = cluster(mode="async", batches=3, batch_sizes=(3,), workers=1)
    (a,) = started(run, 0)
    assert not run.leader.lives.at_leisure()
    a.push(1.0)
    assert run.leader.lives.at_leisure(), "its script may validate between two epochs"
    a.push(1.0)
