"""The mean gradient of the whole model is clipped as PyTorch clips it, wherever it lies and whatever was dropped."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("worker", "zoo")]
import pytest
import torch
import towers_in_one_process as in_threads
from plain import assert_same, plain
from ways import recipe_of

from evener.testing import Cluster, Trainer, finished, one_process, row_recipe, train

STEPS, BATCH = 5, 6
#: They clip every step of this recipe, and leave none as it is.
LIMITS = [{"clip_norm": 0.05}, {"clip_value": 0.01}]
CLIPS = pytest.mark.parametrize("limit", LIMITS, ids=["norm", "value"])
BY = pytest.mark.parametrize("by", ["recipe", "option"])


def sgd(**parts):
    """Each step is as long as its gradient: Adam would make up for what is clipped."""
    return recipe_of(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5), **parts)


def said(by, limit, **options):
    """The recipe and the settings, when one of them says it."""
    return (sgd(**limit), options) if by == "recipe" else (sgd(), {**options, **limit})


def expected(limit, replicas=1):
    right = plain(sgd(**limit), replicas, steps=STEPS, batch_size=BATCH).parameters
    free = plain(sgd(), replicas, steps=STEPS, batch_size=BATCH).parameters
    assert not torch.allclose(right["0.weight"], free["0.weight"], rtol=1e-3), "this limit limits"
    return right


def trained(cluster, workers):
    trainers = [Trainer(cluster, index) for index in range(workers)]
    train(trainers)
    finished(trainers)
    assert cluster.leader.rounds.products._known == {}, "nothing that was decided is remembered"
    return cluster.parameters()


@BY
@CLIPS
def test_one_process(limit, by, tmp_path):
    recipe, options = said(by, limit, train_steps=STEPS, batch_size=BATCH)
    session, *_ = one_process(recipe, tmp_path, **options)
    session.run()
    found = {piece.spec.name: view for piece, view in session.exchange._state.parameters.named()}
    assert_same(found, expected(limit), steps=STEPS)


@BY
@CLIPS
def test_two_towers(limit, by, tmp_path):
    recipe, options = said(by, limit, train_steps=STEPS, batch_size=BATCH)
    sessions = in_threads.towers(recipe, tmp_path, 2, **options)
    in_threads.run(sessions)
    for session in sessions:
        assert_same(in_threads.named(session), expected(limit, 2), steps=STEPS)


@BY
@CLIPS
@pytest.mark.parametrize(
    ("mode", "ps", "workers"), [("sync", 1, 2), ("sync", 3, 2), ("async", 3, 1), ("bounded", 2, 1)]
)
def test_servers(limit, by, mode, ps, workers, tmp_path):
    recipe, options = said(by, limit, mode=mode, ps=ps, workers=workers, train_steps=STEPS, batch_size=BATCH)
    with Cluster(recipe, tmp_path, **options) as cluster:
        assert_same(trained(cluster, workers), expected(limit, workers), steps=STEPS)


@CLIPS
@pytest.mark.parametrize("ps", [1, 3])
def test_gradients_that_are_collected_are_clipped_as_one(limit, ps, tmp_path):
    """Two workers give four gradients for each update."""
    with Cluster(
        sgd(**limit),
        tmp_path,
        mode="sync",
        ps=ps,
        workers=2,
        replicas_to_aggregate=4,
        accumulate=True,
        train_steps=STEPS,
        batch_size=BATCH,
    ) as cluster:
        assert_same(trained(cluster, 2), expected(limit, 4), steps=STEPS)


# --- by hand: one row of equal numbers on two shards, step size 1, limit 1


def by_hand(tmp_path, **options):
    return Cluster(row_recipe(clip_norm=1.0), tmp_path, **({"ps": 2, "mode": "sync", "train_steps": 20} | options))


def length(cluster):
    """Of all updates so far: they have one direction."""
    return float(torch.linalg.vector_norm(cluster.parameters()["row"]))


def test_a_backup_workers_late_gradient_is_no_part_of_any_norm(tmp_path):
    with by_hand(tmp_path, workers=3, replicas_to_aggregate=2) as cluster:
        first, second, late = cluster.started(0, 1, 2)
        first.push(5.0)
        second.push(5.0)
        assert length(cluster) == pytest.approx(1.0, rel=1e-4)
        late.push(-300.0)  # on the version before: dropped, and its worker goes on
        assert cluster.leader.rounds.products._known == {}

        first.listen()
        first.push(7.0)
        late.push(7.0)
        assert length(cluster) == pytest.approx(2.0, rel=1e-4)
        assert cluster.versions() == [2, 2]


@pytest.mark.parametrize("reached", [(1,), (0,)], ids=["the follower", "the leader"])
def test_a_worker_that_dies_with_a_half_held_push_is_no_part_of_any_norm(reached, tmp_path):
    with by_hand(tmp_path, workers=2, elastic=True) as cluster:
        stays, dies = cluster.started(0, 1)
        dies.fill(1e6)
        push = dies.message()
        for shard in reached:
            dies.say(shard, push, payload=True)
        cluster.settle()
        dies.die()
        cluster.settle()
        assert cluster.leader.rounds.products._known == {}

        stays.push(5.0)
        assert cluster.versions() == [1, 1]
        assert length(cluster) == pytest.approx(1.0, rel=1e-4)


def test_a_followers_word_of_a_worker_that_is_gone_already_is_forgotten(tmp_path):
    """It comes from ps:1 after ps:0 has seen the worker die."""
    with by_hand(tmp_path, workers=2, elastic=True) as cluster:
        stays, dies = cluster.started(0, 1)
        dies.fill(1e6)
        dies.say(1, dies.message(), payload=True)
        dies.die(order=[0])
        cluster.look(0)  # the leader sees it gone first
        cluster.look(1)
        cluster.settle()
        dies.die(order=[1])
        cluster.settle()
        stays.push(5.0)

        assert cluster.leader.rounds.products._known == {}
        assert length(cluster) == pytest.approx(1.0, rel=1e-4)


def test_gradients_shorter_than_the_limit_are_applied_bit_for_bit(tmp_path):
    with by_hand(tmp_path, workers=1, mode="async") as cluster:
        (worker,) = cluster.started(0)
        worker.push(0.0625)
        assert set(cluster.parameters()["row"].tolist()) == {-0.0625}
