"""Workers with batches of their own size, and the servers that share out samples to them."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch
from torch import nn

from evener import errors
from evener.commands.account import account
from evener.data.dataset import Data, Tensors
from evener.ledger import path_of
from evener.policy.events import Refreshed
from evener.recipes.recipe import Recipe
from evener.report import Line
from evener.state.manifest import in_unit
from evener.testing import Cluster, Trainer, differences, finished, one_process, row_recipe, same_bits, train
from evener.wire.messages import TooBig

STEPS = 35
SIZES = (12, 6, 3)


def noise(samples: int = 100) -> Data:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(samples, 7, generator=generator, dtype=torch.float64)
    return Data(Tensors(inputs, inputs[:, :1].sin()))


def recipe_of(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), **parts) -> Recipe:
    """float64, a penalty, averages and a schedule by epochs: whatever an update could do otherwise."""
    data = noise()
    everything = {
        "model": lambda: nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 1)).double(), "data": lambda: data,
        "loss": nn.functional.mse_loss, "metrics": {}, "optimizer": lambda model: optimizer(model.parameters()),
        "penalty": lambda model: 1e-3 * sum(p.pow(2).sum() for p in model.parameters()), "ema_decay": 0.9,
        "lr_scheduler": lambda made, pace: torch.optim.lr_scheduler.StepLR(made, max(1, round(2 * float(pace))), 0.7),
    } | parts  # fmt: skip
    return Recipe(**everything)


def alone(recipe, directory, *, steps=STEPS, batch=21, **options):
    session, _, _ = one_process(recipe, directory, train_steps=steps, batch_size=batch, **options)
    session.run()
    return dict(zip([spec.name for spec in session.exchange._state.parameters.layout.specs],
                    session.exchange._state.parameters.views, strict=True))  # fmt: skip


def cluster_of(recipe, directory, **options):
    everything = {"mode": "sync", "workers": 3, "batch_sizes": SIZES, "train_steps": STEPS} | options
    return Cluster(recipe, directory, **everything)


def trained(cluster, *, chance=None, until=None):
    workers = [Trainer(cluster, index) for index in range(cluster.settings.workers)]
    train(workers, chance=chance, until=until)
    return workers


def told(cluster):
    return [line.text for line in cluster.reported(Line)]


@pytest.mark.parametrize("ps", [1, 2])
@pytest.mark.parametrize("by_chance", [False, True])
def test_batches_of_12_6_and_3_are_one_process_at_21(tmp_path, ps, by_chance):
    recipe = recipe_of()
    expected = alone(recipe, tmp_path / "alone")
    with cluster_of(recipe, tmp_path / "ps", ps=ps) as cluster:
        finished(trained(cluster, chance=Random(5) if by_chance else None))
        assert cluster.step == STEPS
        assert max(differences(cluster.parameters(), expected)) < 1e-12
    judged = account(tmp_path / "ps")
    assert judged.clean and judged.examples == STEPS * 21 and judged.epochs == 7, str(judged)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_also_with_adam_and_where_the_mean_is_clipped_over_two_shards(tmp_path, optimizer):
    recipe = recipe_of(lambda parameters: optimizer(parameters, lr=0.01), clip_norm=0.2)
    expected = alone(recipe, tmp_path / "alone")
    with cluster_of(recipe, tmp_path / "ps", ps=2) as cluster:
        finished(trained(cluster))
        assert max(differences(cluster.parameters(), expected)) < 1e-12


@pytest.mark.parametrize("ps", [1, 2])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_whoever_dies_in_the_middle_every_update_is_of_the_same_samples(tmp_path, ps, victim):
    recipe = recipe_of()
    expected = alone(recipe, tmp_path / "alone")
    with cluster_of(recipe, tmp_path / "ps", ps=ps) as cluster:
        workers = trained(cluster, chance=Random(victim), until=17)
        workers.pop(victim).die()
        cluster.settle()
        train(workers, chance=Random(9))
        finished(workers)
        assert max(differences(cluster.parameters(), expected)) < 1e-12
    judged = account(tmp_path / "ps")
    assert judged.clean and judged.examples == STEPS * 21, str(judged)


def test_one_that_comes_back_has_its_share_again(tmp_path):
    recipe = recipe_of()
    expected = alone(recipe, tmp_path / "alone")
    with cluster_of(recipe, tmp_path / "ps") as cluster:
        first = trained(cluster, until=5)
        first[0].die()
        cluster.settle()
        train(first[1:], until=12)
        again = Trainer(cluster, 0)
        again.start()
        train([again, *first[1:]])
        finished([again, *first[1:]])
        assert max(differences(cluster.parameters(), expected)) < 1e-12
    assert account(tmp_path / "ps").clean


def test_with_all_here_each_gets_the_same_samples_of_each_round_whoever_is_first(tmp_path):
    recipe, seen = recipe_of(), []
    for number in range(2):
        with cluster_of(recipe, tmp_path / str(number)) as cluster:
            workers = [Trainer(cluster, index) for index in range(3)]
            for worker in workers:
                worker.start()
            train(workers, chance=Random(number))
            finished(workers)
            seen.append(cluster.parameters())
    assert same_bits(*seen)


def test_a_run_goes_on_in_the_middle_of_an_epoch_with_other_sizes_and_without_any(tmp_path):
    """Samples are counted on, in whatever batches: 7 rounds of 21, 7 of 9 + 8 + 4, then batches of 7."""
    recipe = recipe_of()
    expected = alone(recipe, tmp_path / "alone")
    before = None
    for steps, sizes in ((7, SIZES), (14, (9, 8, 4)), (STEPS, None)):
        options = {"batch_sizes": sizes} if sizes else {"batch_sizes": (), "batch_size": 7}
        with cluster_of(recipe, tmp_path / "ps", before=before, train_steps=steps, **options) as cluster:
            finished(trained(cluster))
            before = cluster
            if steps == STEPS:
                assert max(differences(cluster.parameters(), expected)) < 1e-12
            assert not [line for line in told(cluster) if "warning" in line]
    judged = account(tmp_path / "ps")
    assert judged.clean and judged.examples == STEPS * 21 and judged.generations == 3, str(judged)


def test_a_run_that_was_cut_in_a_round_gives_out_what_was_not_applied(tmp_path):
    recipe = recipe_of()
    with cluster_of(recipe, tmp_path, train_steps=99, save_checkpoint_steps=2) as first:
        trained(first, until=9)
    with cluster_of(recipe, tmp_path, before=first, batch_sizes=(5, 4), workers=2, train_steps=20) as second:
        workers = [Trainer(second, index) for index in range(2)]
        assert (workers[0].start().lease, workers[1].start().lease) == (8 * 21, 8 * 21 + 5)
        train(workers)
        finished(workers)
    judged = account(tmp_path)
    assert judged.clean and judged.examples == 8 * 21 + 12 * 9 and judged.lost == 1, str(judged)


def test_batches_that_would_come_in_part_are_refused(tmp_path):
    with cluster_of(recipe_of(), tmp_path, train_steps=1) as first:
        finished(trained(first))
        manifest = first.leader.setup.saver.read_newest()[0]
    assert in_unit(manifest, 7, by_samples=False).next_lease == 3
    with pytest.raises(errors.CheckpointError, match="21 samples, which are no whole batches of 10"):
        in_unit(manifest, 10, by_samples=False)


def test_one_process_goes_on_where_workers_with_sizes_were(tmp_path):
    recipe = recipe_of()
    expected = alone(recipe, tmp_path / "alone", steps=6)
    with cluster_of(recipe, tmp_path / "ps", train_steps=3) as first:
        finished(trained(first))
    assert max(differences(alone(recipe, tmp_path / "ps", steps=6), expected)) < 1e-12
    judged = account(tmp_path / "ps")
    assert judged.clean and judged.examples == 6 * 21, str(judged)


# --- by hand: who gets what, and what is refused


def by_hand(directory, **options):
    everything = {"mode": "sync", "workers": 3, "batch_sizes": SIZES, "train_steps": 99} | options
    return Cluster(row_recipe(samples=50), directory, **everything)


def test_workers_of_other_sizes_are_refused_as_those_of_another_batch_size_are(tmp_path):
    with by_hand(tmp_path / "a") as run, by_hand(tmp_path / "b", batch_sizes=(12, 3, 6)) as other:
        worker = run.worker(0)
        hello = worker.hello(recipe=other.built.fingerprint)
        assert isinstance(worker.refused(hello), errors.ModelMismatch)


def given(worker):
    return (worker.turn.lease, worker.turn.count) if worker.turn is not None else None


def test_a_worker_for_whom_nothing_is_left_waits_for_the_next_round(tmp_path):
    with by_hand(tmp_path) as run:
        a, b, c = run.started(0, 1, 2)
        assert [given(worker) for worker in (a, b, c)] == [(0, 12), (12, 6), (18, 3)]
        assert b.push(1.0) is None and c.push(1.0) is None
        assert run.leader.waiting_for() == (
            "update 1 needs 21 samples, holds 9 (workers 1 and 2), worker 0 computes 12"
        )
        a.push(1.0)
        assert run.step == 1 and float(run.parameters()["row"][0]) == -1.0
        assert [worker.listen() and given(worker) for worker in (b, c)] == [(33, 6), (39, 3)] and given(a) == (21, 12)


def test_the_mean_is_over_samples(tmp_path):
    with by_hand(tmp_path) as run:
        for worker, value in zip(run.started(0, 1, 2), (1.0, 2.0, 10.0), strict=True):
            worker.push(value)
        assert float(run.parameters()["row"][0]) == pytest.approx(-(12 + 12 + 30) / 21, rel=1e-15)


def test_what_a_dead_worker_had_is_computed_by_those_who_wait_in_the_same_round(tmp_path):
    with by_hand(tmp_path) as run:
        a, b, c = run.started(0, 1, 2)
        b.push(1.0), c.push(1.0)
        a.die()
        run.settle()
        assert (b.listen() and given(b), c.listen() and given(c)) == ((0, 6), (6, 3))
        assert b.push(1.0) is not None and given(b) == (9, 3)
        c.push(1.0)
        b.push(1.0)
        assert run.step == 1 and float(run.parameters()["row"][0]) == -1.0


def test_gradients_of_one_who_dies_are_dropped_with_its_samples(tmp_path):
    with by_hand(tmp_path, batch_sizes=(4, 4), workers=2) as run:
        a, b = run.started(0, 1)
        a.push(100.0)
        a.die()
        run.settle()
        assert b.push(1.0) is not None and given(b) == (0, 4)
        b.push(1.0)
        assert run.step == 1 and float(run.parameters()["row"][0]) == -1.0
        run.leader.stop("enough")
    judged = account(tmp_path)
    assert judged.clean and judged.dropped == {"its worker left before the update": 1}, str(judged)


def test_a_worker_that_hangs_loses_its_samples_to_the_others(tmp_path):
    with by_hand(tmp_path, batch_sizes=(4, 4), workers=2, stall_timeout=40.0) as run:
        _, b = run.started(0, 1)
        b.push(1.0)
        run.tick(41.0)
        assert [line for line in told(run) if line.startswith("worker:0 is gone")]
        assert b.listen() and given(b) == (0, 4)


@pytest.mark.parametrize("wrong", [{"count": 11}, {"count": 0}, {"examples": 100}, {"lease": 1}, {"count": 13}])
def test_a_gradient_of_other_samples_than_were_given_is_refused(tmp_path, wrong):
    with by_hand(tmp_path) as run:
        (a,) = run.started(0)
        a.fill(1.0)
        assert isinstance(a.refused(a.message(**wrong), payload=True), errors.ProtocolError)


def test_a_uniform_run_takes_no_counted_gradient(tmp_path):
    with by_hand(tmp_path, batch_sizes=()) as run:
        (a,) = run.started(0)
        a.fill(1.0)
        assert isinstance(a.refused(a.message(count=10, examples=10), payload=True), errors.ProtocolError)
        assert isinstance(a.refused(TooBig(a.identity, 0, 10)), errors.ProtocolError)


def test_a_batch_that_gives_nothing_finite_is_given_up_by_its_samples(tmp_path):
    with by_hand(tmp_path, batch_sizes=(4, 4), workers=2, on_nan="skip", train_steps=1) as run:
        a, b = run.started(0, 1)
        assert a.push(float("nan")).rejected and given(a) == (0, 4)
        assert a.push(float("nan")).rejected and given(a) == (8, 4), "others come in its place"
        b.push(1.0), a.push(1.0)
        assert run.step == 1
        for worker in (a, b):
            worker.listen(), worker.leave()
        run.finish()
    judged = account(tmp_path)
    assert judged.clean and judged.skipped == ((0, 4),), str(judged)
    assert "4 samples given up, with no update: samples 0..3" in str(judged)


def test_the_ledger_and_the_manifest_name_stretches(tmp_path):
    with by_hand(tmp_path, train_steps=1) as run:
        workers = run.started(0, 1, 2)
        for worker in workers:
            worker.push(1.0)
        for worker in workers:
            worker.listen(), worker.leave()
        run.finish()
        manifest = run.leader.setup.saver.read_newest()[0]
    lines = [json.loads(line) for line in path_of(tmp_path).read_text().splitlines()]
    assert (lines[0][0], lines[0][1], lines[0][5], lines[0][9]) == ("b", 2, "sync/samples", 1)
    assert lines[1] == ["u", 1, [[[0, 12], 0, 1, 1], [[12, 18], 1, 1, 1], [[18, 21], 2, 1, 1]]]
    assert lines[-1][:5] == ["e", 1, "reached step 1", 21, []]
    assert (manifest.format, manifest.by_samples, manifest.next_lease, manifest.batch_size) == (2, True, 21, 1)


# --- one gradient an update


def test_in_async_every_sample_counts_alike(tmp_path):
    with by_hand(tmp_path, mode="async", batch_sizes=(12, 4), workers=2) as run:
        a, b = run.started(0, 1)
        a.push(1.0)
        assert float(run.parameters()["row"][0]) == -12 / 8
        b.push(1.0)
        assert float(run.parameters()["row"][0]) == -16 / 8


@pytest.mark.parametrize("mode", ["async", "bounded"])
@pytest.mark.parametrize("ps", [1, 2])
def test_without_rounds_an_epoch_ends_by_samples(tmp_path, mode, ps):
    with cluster_of(recipe_of(), tmp_path, mode=mode, ps=ps, train_steps=None, epochs=2) as cluster:
        workers = trained(cluster, chance=Random(1))
        assert {worker.turn.stop for worker in workers} == {"all batches of 2 epochs are applied"}
        finished(workers)
    judged = account(tmp_path)
    assert judged.clean and judged.examples == 200 and judged.epochs == 2 and not judged.unapplied, str(judged)


def test_a_run_that_has_had_its_epochs_says_so_when_it_is_begun_again(tmp_path):
    options = {"mode": "async", "batch_sizes": (30,), "workers": 1, "train_steps": None, "epochs": 1}
    with by_hand(tmp_path, **options) as first:
        (a,) = first.started(0)
        while not a.turn.stop:
            a.push(1.0)
        a.leave()
        first.finish()
    with by_hand(tmp_path, before=first, **options) as second:
        assert second.worker(0).start().stop == "already at step 2: nothing to do"


def test_no_batch_has_a_sample_twice(tmp_path):
    with by_hand(tmp_path, batch_sizes=(), batch_by_speed=True, batch_size=40, workers=2) as run:
        a, b = run.started(0, 1)
        a.die()
        run.settle()
        b.push(1.0)
        assert b.turn.count == 40 and run.leader.rounds.sharing.shares.size(1) == 80, "what is left of the round"
        b.push(1.0)
        assert given(b) == (80, 50), "an epoch, though its share is larger"


def test_without_rounds_no_more_is_computed_than_there_are_updates_left(tmp_path):
    with by_hand(tmp_path, mode="async", batch_sizes=(12, 4), workers=2, train_steps=2) as run:
        a, b = run.started(0, 1)
        assert a.push(1.0) is None, "the second update is under way already"
        b.push(1.0)
        assert a.listen().stop and run.step == 2


def test_in_place_of_samples_that_were_given_up_others_come_also_when_the_run_goes_on(tmp_path):
    options = {"mode": "async", "batch_sizes": (5,), "workers": 1, "train_steps": None, "epochs": 1, "on_nan": "skip"}
    with by_hand(tmp_path, save_checkpoint_steps=2, **options) as first:
        (a,) = first.started(0)
        a.push(float("nan")), a.push(float("nan")), a.push(1.0), a.push(1.0)
        first.tick()
    with by_hand(tmp_path, before=first, **options) as second:
        (a,) = second.started(0)
        while not a.turn.stop:
            a.push(1.0)
        a.leave()
        second.finish()
    judged = account(tmp_path)
    assert judged.clean and (judged.examples, judged.skipped) == (50, ((0, 5),)), str(judged)


def test_a_crash_in_async_loses_no_sample(tmp_path):
    with cluster_of(recipe_of(), tmp_path, mode="async", train_steps=None, epochs=3) as cluster:
        workers = trained(cluster, chance=Random(2), until=20)
        workers.pop(1).die()
        cluster.settle()
        train(workers)
        finished(workers)
    judged = account(tmp_path)
    assert judged.clean and judged.examples == 300, str(judged)


# --- by speed


def paced(cluster, paces, **options):
    workers = [Trainer(cluster, index) for index in range(len(paces))]
    for worker, pace in zip(workers, paces, strict=True):
        worker.pace = pace
    train(workers, **options)
    return workers


def test_by_speed_the_slow_get_less_and_the_result_is_that_of_one_process(tmp_path):
    recipe = recipe_of()
    expected = alone(recipe, tmp_path / "alone")
    options = {"batch_sizes": (), "batch_by_speed": True, "batch_size": 7}
    with cluster_of(recipe, tmp_path / "ps", **options) as cluster:
        workers = paced(cluster, (1.0, 1.0, 4.0), until=11)
        shares = cluster.leader.rounds.sharing.shares
        assert [shares.size(worker) for worker in range(3)] == [10, 9, 2]
        assert told(cluster) == [
            "worker 0 gets 10 of 21 samples (1 of the fastest's speed)",
            "worker 1 gets 9 of 21 samples (1 of the fastest's speed)",
            "worker 2 gets 2 of 21 samples (0.25 of the fastest's speed)",
        ]
        train(workers)
        finished(workers)
        assert max(differences(cluster.parameters(), expected)) < 1e-12
    assert account(tmp_path / "ps").clean


def test_by_speed_in_async_too(tmp_path):
    options = {"mode": "async", "batch_sizes": (), "batch_by_speed": True, "batch_size": 7}
    with cluster_of(recipe_of(), tmp_path, **options) as cluster:
        paced(cluster, (1.0, 1.0, 4.0), chance=Random(1))
        assert [cluster.leader.rounds.sharing.shares.size(worker) for worker in range(3)] == [10, 9, 2]


# --- memory


def test_too_big_a_batch_goes_back_and_its_worker_gets_half_from_then_on(tmp_path):
    with by_hand(tmp_path) as run:
        a, b, c = run.started(0, 1, 2)
        a.say(0, TooBig(a.identity, 0, 12))
        assert a.listen() and given(a) == (0, 6)
        assert told(run)[-1].startswith("worker:0 has not enough memory for 12 samples: from now on it gets at most 6")
        a.push(1.0), b.push(1.0), c.push(1.0)
        for worker in (a, b):
            worker.listen() if worker.turn is None else None
            if worker.turn is not None and run.step == 0:
                worker.push(1.0)
        assert run.step == 1 and float(run.parameters()["row"][0]) == -1.0
    judged = account(tmp_path)
    assert not judged.wrong and judged.returned == 1, str(judged)


def test_a_policy_hears_that_such_a_worker_has_the_newest_parameters(tmp_path):
    with by_hand(tmp_path, mode="async") as run:
        a, b, _ = run.started(0, 1, 2)
        b.push(1.0)
        policy, heard = run.leader.rounds.policy, []
        answer = policy.on
        policy.on = lambda event: heard.append(event) or answer(event)
        a.say(0, TooBig(a.identity, 0, 12))
        assert a.listen().version == 1 and heard == [Refreshed(0)]


def test_only_what_was_given_can_be_too_big(tmp_path):
    with by_hand(tmp_path) as run:
        (a,) = run.started(0)
        for lease, count in ((0, 11), (1, 12), (-1, 0)):
            assert isinstance(a.refused(TooBig(a.identity, lease, count)), errors.ProtocolError)


@pytest.mark.parametrize("ps", [1, 2])
def test_a_bound_from_the_start_is_kept_and_others_compute_the_rest(tmp_path, ps):
    recipe = recipe_of()
    expected = alone(recipe, tmp_path / "alone")
    with cluster_of(recipe, tmp_path / "ps", ps=ps, batch_caps=(5, 6, 6)) as cluster:
        finished(trained(cluster))
        assert max(differences(cluster.parameters(), expected)) < 1e-12
    lines = path_of(tmp_path / "ps").read_text().splitlines()
    entries = [entry for line in map(json.loads, lines) if line[0] == "u" for entry in line[2]]
    assert max(stop - start for (start, stop), worker, *_ in entries if worker == 0) == 5
