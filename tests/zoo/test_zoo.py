"""No model that trains in plain PyTorch may break here, or learn something else: every kind, in every way of running.

The judge is a plain loop over the same batches (`plain.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from models import MODELS
from plain import assert_same, plain
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "worker"))
import towers_in_one_process as in_threads

from evener.api import audit
from evener.recipes.recipe import Recipe
from evener.testing import Cluster, Trainer, finished, one_process, train

STEPS, BATCH = 5, 6
#: They change parameters in forward, which ps tasks own; that this is refused is tested where it is.
ALONE_ONLY = {"renormed"}


def recipe_of(kind: str) -> Recipe:
    generator = torch.Generator().manual_seed(1)
    inputs, target = torch.randn(50, 8, generator=generator), torch.randint(0, 3, (50,), generator=generator)
    # Adam makes whole steps of rounding noise, which a bias before a normalization has for a gradient; a convolution in
    # channels last rounds otherwise than in the memory that travels.
    kind_of = torch.optim.SGD if kind == "channels last" else torch.optim.AdamW
    return Recipe(
        model=MODELS[kind], data=lambda: ((inputs, target), (inputs, target)), name=kind, changing=["teacher"],
        optimizer=lambda model: kind_of(model.parameters(), lr=0.01, weight_decay=0.1),
    )  # fmt: skip


def expected_of(kind: str, replicas: int = 1) -> dict[str, Tensor]:
    return plain(recipe_of(kind), replicas, steps=STEPS, batch_size=BATCH).parameters


#: What `make check` takes of the table; `make test` takes all.
FEW = ("batchnorm2d", "lstm", "tied weights", "buffers", "unused branch", "teacher", "frozen layers", "bfloat16")


def kinds(names):
    """The table's rows; all but a few are slow together."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in names]
    )


KINDS = kinds(MODELS)
WITH_SERVERS = kinds(sorted(MODELS.keys() - ALONE_ONLY))


@KINDS
def test_one_process(kind, tmp_path):
    session, _, _ = one_process(recipe_of(kind), tmp_path, train_steps=STEPS, batch_size=BATCH)
    session.run()

    state = session.exchange._state
    found = {piece.spec.name: view for piece, view in state.parameters.named()} | state.frozen
    assert_same(found, expected_of(kind), steps=STEPS)


@pytest.mark.slow
@KINDS
def test_one_process_that_goes_on_has_the_same_bits(kind, tmp_path):
    for directory, ends in (("once", (STEPS,)), ("twice", (2, STEPS))):
        for end in ends:
            session, _, _ = one_process(recipe_of(kind), tmp_path / directory, train_steps=end, batch_size=BATCH)
            session.run()
        if directory == "once":
            expected = {piece.key: view.clone() for piece, view in session.exchange._state.parameters.named()}

    for piece, view in session.exchange._state.parameters.named():
        assert torch.equal(view, expected[piece.key]), piece.key


@pytest.mark.slow
@KINDS
def test_two_towers(kind, tmp_path):
    sessions = in_threads.towers(recipe_of(kind), tmp_path, 2, train_steps=STEPS, batch_size=BATCH)
    assert in_threads.run(sessions) == [f"reached step {STEPS}"] * 2

    expected = expected_of(kind, replicas=2)
    for session in sessions:
        assert_same(in_threads.named(session), expected, steps=STEPS)


@WITH_SERVERS
@pytest.mark.parametrize(
    ("mode", "ps", "workers"),
    [
        pytest.param(*way, id="-".join(map(str, way)), marks=[pytest.mark.slow] * (way != ("sync", 3, 2)))
        for way in (("async", 1, 1), ("async", 3, 1), ("bounded", 1, 1), ("sync", 1, 2), ("sync", 3, 2))
    ],
)
def test_servers(kind, mode, ps, workers, tmp_path):
    with Cluster(recipe_of(kind), tmp_path, mode=mode, ps=ps, workers=workers, train_steps=STEPS,
                 batch_size=BATCH) as cluster:  # fmt: skip
        trainers = [Trainer(cluster, index) for index in range(workers)]
        train(trainers)
        finished(trainers)

        assert_same(cluster.parameters(), expected_of(kind, replicas=workers), steps=STEPS)


@pytest.mark.slow
@WITH_SERVERS
def test_two_workers_in_turn(kind, tmp_path):
    with Cluster(recipe_of(kind), tmp_path, workers=2, ps=2, train_steps=8, batch_size=BATCH) as cluster:
        trainers = [Trainer(cluster, index) for index in range(2)]
        train(trainers)
        finished(trainers)

        for name, tensor in cluster.parameters().items():
            assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), name
    assert audit(tmp_path).clean
