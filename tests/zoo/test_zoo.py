"""No model that trains in plain PyTorch may break here, or learn something else: every kind, in every way of running.

The judge is a plain loop over the same batches (`plain`). One process and a single worker are compared with it
directly; towers and sync with the mean of the gradients of the same batches, each computed from the same parameters and
buffers, of which the buffers of the last one stay.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from models import MODELS
from torch import Tensor, nn

sys.path += [str(Path(__file__).parents[1] / name) for name in ("server", "worker")]
import towers_in_one_process as in_threads
from cluster_in_one_process import Cluster, Trainer, finished, one_process, train

from evener.api import audit
from evener.data.batches import Batches
from evener.data.dataset import as_data
from evener.recipe import Recipe
from evener.tensors import named_tensors

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


def plain(recipe: Recipe, replicas: int = 1) -> dict[str, Tensor]:
    """What PyTorch alone makes of the first batches, so many for each update."""
    torch.manual_seed(0)
    model = recipe.model()
    optimizer = recipe.optimizer(model)
    batches = Batches(as_data(recipe.data()).train, batch_size=BATCH, seed=0)
    named, leases = dict(model.named_parameters()), iter(range(STEPS * replicas))
    for _ in range(STEPS):
        made: list[dict[str, Tensor | None]] = []
        before = {name: buffer.clone() for name, buffer in named_tensors(model).items() if name not in named}
        before |= {name: p.detach().clone() for name, p in named.items() if not p.requires_grad}
        for _ in range(replicas):
            _put(model, before)
            lease = next(leases)
            inputs, target = batches.batch(lease)
            torch.manual_seed(lease)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            made.append({name: None if p.grad is None else p.grad.to_dense().clone() for name, p in named.items()})
        for name, parameter in named.items():
            parameter.grad = _mean([gradients[name] for gradients in made])
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def _put(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, tensor in named_tensors(model).items():
        if name in values:
            tensor.data.copy_(values[name])


def _mean(gradients: Sequence[Tensor | None]) -> Tensor | None:
    if all(gradient is None for gradient in gradients):
        return None
    some = next(gradient for gradient in gradients if gradient is not None)
    total = sum((torch.zeros_like(some) if g is None else g).double() for g in gradients)
    return (total / len(gradients)).to(some.dtype)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """All that travels is what plain PyTorch has: by norm, relative to each tensor."""
    travelling = {name: tensor for name, tensor in expected.items() if name in found}
    assert travelling.keys() == found.keys()
    for name, right in travelling.items():
        left = found[name].detach()
        assert left.dtype == right.dtype, name
        if not right.is_floating_point():
            assert torch.equal(left, right), name
            continue
        tolerance = {torch.float64: 1e-12, torch.bfloat16: STEPS * 2**-8}.get(right.dtype, 1e-6)
        norm = torch.linalg.vector_norm(right.double())
        difference = torch.linalg.vector_norm(left.double() - right.double())
        assert float(difference) <= tolerance * max(float(norm), 1e-3), f"{name}: {left} is not {right}"


KINDS = pytest.mark.parametrize("kind", MODELS)
WITH_SERVERS = pytest.mark.parametrize("kind", sorted(MODELS.keys() - ALONE_ONLY))


@KINDS
def test_one_process(kind, tmp_path):
    session, _, _ = one_process(recipe_of(kind), tmp_path, train_steps=STEPS, batch_size=BATCH)
    session.run()

    state = session.exchange._state
    found = {piece.spec.name: view for piece, view in state.parameters.named()} | state.frozen
    assert_same(found, plain(recipe_of(kind)))


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

    expected = plain(recipe_of(kind), replicas=2)
    for session in sessions:
        assert_same(in_threads.named(session), expected)


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

        assert_same(cluster.parameters(), plain(recipe_of(kind), replicas=workers))


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
