"""Modes that take, wait for or drop what is late, on real servers: leases go back at once, timers are kept."""

from __future__ import annotations

import pytest

from evener.commands.account import account
from evener.report import Line
from evener.testing import Cluster, row_recipe


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(**options):
        made.append(Cluster(row_recipe(), tmp_path / "run", **{"train_steps": 99, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def row(run):
    return run.leader.shard.state.parameters.views[0][0].item()


@pytest.mark.parametrize("ps", [1, 2])
def test_ringmaster_a_lease_goes_to_others_as_soon_as_its_gradient_is_doomed(cluster, ps):
    run = cluster(mode="ringmaster", max_delay=2, ps=ps)
    slow, fast = run.started(0, 1)
    assert (slow.turn.lease, fast.turn.lease) == (0, 1)

    assert fast.push(1.0).lease == 2, "one update: worker 0 would be one late, which may be"
    assert fast.push(1.0).lease == 0, "two: its batch goes to who can use it"
    late = slow.push(100.0)
    assert late.rejected == "computed at version 0, now 2: less than 2 updates late are taken"
    assert (late.version, late.lease, row(run)) == (2, 3, -2.0)
    assert slow.push(1.0).rejected == ""


def test_rennala_averages_several_of_one_worker_and_all_of_one_version(cluster):
    run = cluster(mode="rennala", gradients_per_update=2)
    slow, fast = run.started(0, 1)

    assert fast.push(2.0).version == 0
    assert fast.push(4.0).version == 1
    assert row(run) == -3.0
    assert slow.push(100.0).rejected == "computed at version 0, now 1"
    run.tick()
    assert any("one update averages 2 x" in line.text for line in run.reported(Line))


def test_quorum_what_is_late_joins_the_next_update(cluster):
    run = cluster(mode="quorum", quorum=1, max_delay=2, workers=2)
    slow, fast = run.started(0, 1)
    assert fast.push(1.0).version == 1
    told = slow.push(3.0)

    assert (told.version, told.rejected, told.staleness, row(run)) == (2, "", 1, -4.0)


@pytest.mark.parametrize("ps", [1, 2])
def test_quorum_waits_for_its_grace_and_no_longer(cluster, ps):
    run = cluster(mode="quorum", quorum=1, linger=0.5, workers=3, ps=ps)
    one, two, _ = run.started(0, 1, 2)
    assert one.push(2.0) is None
    run.tick(0.3)
    assert two.push(4.0) is None
    assert run.leader.pause() == pytest.approx(0.2)
    assert "has 2 gradients and waits 0.5 s: worker 2 computing" in run.leader.waiting_for()
    run.tick(0.1)
    assert run.step == 0
    run.tick(0.11)
    assert (run.step, row(run)) == (1, -3.0)
    assert one.listen().version == two.listen().version == 1
    assert run.leader.pause() == float("inf")


def test_quorum_the_last_update_is_not_made_while_somebody_computes(cluster):
    run = cluster(mode="quorum", quorum=2, workers=3, epochs=1, train_steps=None, batch_size=14)
    a, b, c = run.started(0, 1, 2)  # 40 samples: three batches, and all are out

    assert a.push(1.0) is None
    assert run.step == 0
    assert b.push(1.0) is None and run.step == 1, "a waits for a batch that may come back"
    assert c.push(1.0).stop == "all batches of 1 epoch are applied"


@pytest.mark.parametrize("linger", [0.0, 0.5])
def test_quorum_epochs_end_with_their_batches_whatever_number_of_updates_that_is(cluster, linger):
    run = cluster(mode="quorum", quorum=2, workers=3, linger=linger, epochs=1, train_steps=None, batch_size=5)
    crew = run.started(0, 1, 2)
    for turn in range(400):
        worker = crew[(0, 1, 0, 1, 2)[turn % 5]]
        if worker.turn is None:
            worker.listen()
        if worker.turn is not None and not worker.turn.stop:
            worker.push(1.0)
        run.tick(0.2)
        if run.leader.course.stopping:
            break
    assert run.leader.course.stopping == "all batches of 1 epoch are applied"
    assert run.leader.leases.exhausted
    samples = run.leader.course.samples
    assert run.leader.leases.next_lease == samples // 5
    assert run.step < samples // 5, "updates of several gradients"


@pytest.mark.parametrize(
    "options",
    [{"mode": "rennala"}, {"mode": "ringmaster"}, {"mode": "softsync"}, {"mode": "quorum"}],
    ids=lambda options: options["mode"],
)
def test_the_account_of_a_run_that_ends_in_the_middle_is_clean(cluster, options):
    run = cluster(train_steps=7, workers=3, **options)
    a, b, c = run.started(0, 1, 2)
    for turn in range(200):
        worker = (a, b, a, c, b, a)[turn % 6]
        if worker.turn is None:
            worker.listen()
        if worker.turn is not None and not worker.turn.stop:
            worker.push(1.0)
    assert run.step == 7
    for worker in (a, b, c):
        worker.listen()
        worker.leave()
    run.finish()
    run.close()
    assert account(run.leader.setup.saver._store.directory.parent).clean
