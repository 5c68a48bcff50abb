"""--on-nan and --refuse-norm: a gradient that must not become an update, and what becomes of its batch."""

from __future__ import annotations

import math

import pytest

from evener import errors
from evener.commands.account import account as account_of
from evener.ledger import path_of
from evener.ledger.lines import Skipped
from evener.ledger.reading import read
from evener.report import Line
from evener.testing import Cluster, row_recipe


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(directory="run", **options):
        made.append(Cluster(row_recipe(), tmp_path / directory, **({"train_steps": 4, "on_nan": "skip"} | options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ledger(run):
    return [line for _, line in read(path_of(run.leader.setup.saver._store.directory.parent))]


def skipped(run):
    return [line.lease for line in ledger(run) if isinstance(line, Skipped)]


def lines(run):
    return [line.text for line in run.reported(Line)]


def ended(run, *workers):
    for worker in workers:
        worker.leave()
    run.finish()
    run.close()
    return account_of(run.leader.setup.saver._store.directory.parent)


@pytest.mark.parametrize("ps", [1, 3])
def test_skip_tries_a_batch_once_more_then_gives_it_up_and_the_run_makes_all_its_steps(cluster, ps):
    run = cluster(ps=ps, workers=1)
    (worker,) = run.started(0)
    worker.push(1.0)
    again = worker.push(math.nan)
    assert (again.lease, again.rejected) == (1, "not finite"), "the same batch comes again"
    after = worker.push(math.nan)
    assert after.lease == 2
    for _ in range(3):
        worker.push(1.0)

    account = ended(run, worker)
    assert (run.step, skipped(run)) == (4, [1])
    assert account.clean, str(account)
    assert (account.skipped, account.unapplied, account.updates) == (((1, 2),), (), 4)
    assert [text.rpartition("; ")[2] for text in lines(run)] == [
        "the batch is tried once more",
        "the batch is given up",
    ]


def test_a_batch_that_is_fine_the_second_time_is_applied(cluster):
    run = cluster(workers=1)
    (worker,) = run.started(0)
    worker.push(math.inf)
    for _ in range(4):
        worker.push(1.0)
    account = ended(run, worker)
    assert (account.clean, account.skipped, account.updates) == (True, (), 4)


def test_lockstep_goes_on_with_another_batch_in_the_same_round(cluster):
    run = cluster(mode="sync", train_steps=2)
    a, b = run.started(0, 1)
    assert a.push(1.0) is None
    again = b.push(math.nan)
    assert (again.lease, again.version) == (1, 0)
    assert b.push(math.nan).lease == 2
    b.push(1.0)
    assert run.step == 1
    a.listen()
    a.push(1.0)
    b.push(1.0)
    account = ended(run, a, b)
    assert (account.clean, account.skipped) == (True, ((1, 2),))


def test_a_gradient_of_lockstep_that_came_too_late_is_only_late(cluster):
    run = cluster(mode="sync", replicas_to_aggregate=1)
    a, b = run.started(0, 1)
    a.push(1.0)
    assert b.push(math.nan).rejected == "computed at version 0, now 1"
    assert skipped(run) == []


def test_what_was_given_up_is_not_given_out_after_a_resume(cluster):
    run = cluster(workers=1, train_steps=2)
    (worker,) = run.started(0)
    for value in (1.0, math.nan, math.nan, 1.0):
        worker.push(value)
    ended(run, worker)
    again = cluster(before=run, workers=1, train_steps=4)
    (worker,) = again.started(0)
    assert worker.turn.lease == 3
    worker.push(1.0)
    worker.push(1.0)
    account = ended(again, worker)
    assert (account.clean, account.skipped, account.updates) == (True, ((1, 2),), 4)


def test_a_loss_that_is_not_finite_counts_though_its_gradient_is(cluster):
    run = cluster(workers=1)
    (worker,) = run.started(0)
    assert worker.push(1.0, loss=math.nan).rejected == "not finite"
    assert run.step == 0


@pytest.mark.parametrize("ps", [1, 3])
def test_a_gradient_longer_than_allowed_is_treated_so_whatever_shards_it_lies_on(cluster, ps):
    run = cluster(ps=ps, workers=1, refuse_norm=8.5)  # 64 numbers of 1 have norm 8
    (worker,) = run.started(0)
    worker.push(1.0)
    assert worker.push(1.1).rejected == "too long"
    assert run.step == 1
    assert "a gradient of norm 8.8, above --refuse-norm 8.5" in lines(run)[0]


def test_ten_batches_in_a_row_are_no_bad_batches(cluster):
    run = cluster(workers=1, train_steps=99)
    (worker,) = run.started(0)
    for _ in range(20):
        assert not worker.push(math.nan).stop
    assert worker.push(math.nan).failed
    assert isinstance(run.leader.ending.failure, errors.NonFinite)


def test_rollback_ends_this_generation_and_the_next_one_leaves_the_batch_out(cluster):
    run = cluster(workers=1, train_steps=5, on_nan="rollback", save_checkpoint_steps=2)
    (worker,) = run.started(0)
    for _ in range(3):
        worker.push(1.0)
    with pytest.raises(errors.RolledBack) as back:
        worker.push(math.nan)
    assert back.value.leases == (3,)
    run.leader.saves.poll()
    run.close()

    again = cluster(before=run, workers=1, train_steps=5, on_nan="rollback", without=(3,))
    (worker,) = again.started(0)
    assert (worker.turn.version, worker.turn.lease) == (2, 2)
    assert worker.push(1.0).lease == 4
    worker.push(1.0)
    worker.push(1.0)
    account = ended(again, worker)
    assert (account.clean, account.skipped, account.lost) == (True, ((3, 4),), 1)


def test_a_spike_of_the_loss_is_told_with_its_batch(cluster):
    run = cluster(workers=1, train_steps=99, spike=10.0)
    (worker,) = run.started(0)
    for _ in range(30):
        worker.push(0.0, loss=0.5)
    assert lines(run) == []
    worker.push(0.0, loss=6.0)
    assert lines(run)[0].startswith("warning: the loss 6 of lease 30 (samples ")
    assert lines(run)[0].endswith("is 12 times the running mean")


def test_what_a_worker_has_looked_at_is_not_looked_at_again_and_its_update_is(cluster):
    """No worker of ours says so of what is not finite. If one did, the run would end before that is saved."""
    run = cluster(on_nan="stop")
    (worker,) = run.started(0)
    with pytest.raises(errors.NonFinite, match="the update to global step 1 has made"):
        worker.push(math.nan, finite=True)
