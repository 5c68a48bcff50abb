"""Interrupted anywhere and resumed is uninterrupted, bit for bit: parameters, averages, optimizer, schedule, data."""

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from evener.data.dataset import Data, Tensors
from evener.recipes.recipe import Recipe
from evener.session.hooks import Hook
from evener.state.checkpoint import Store
from evener.testing import Cluster, Trainer, finished, one_process, same_bits, train

STEPS = 14
OPTIMIZERS = {
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda model: torch.optim.AdamW(
        [{"params": model[0].parameters(), "lr": 0.01}, {"params": [*model[1].parameters(), *model[3].parameters()]}]
    ),
}
SCHEDULES = {
    "momentum": lambda made, steps_per_epoch: torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=STEPS),
    "adam": lambda made, steps_per_epoch: torch.optim.lr_scheduler.LambdaLR(
        made, lambda step: 0.9 ** (step / steps_per_epoch)
    ),
}


@cache
def data():
    generator = torch.Generator().manual_seed(0)
    return Data(Tensors(torch.randn(45, 12, generator=generator), torch.arange(45) % 4))


def recipe_of(optimizer):
    return Recipe(
        model=lambda: nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.4), nn.Linear(16, 4)),
        data=data, optimizer=OPTIMIZERS[optimizer], lr_scheduler=SCHEDULES[optimizer], ema_decay=0.9,
    )  # fmt: skip


class Interrupt(Hook):
    """As Ctrl-C in step `step`."""

    def __init__(self, step):
        self.step = step

    def before_step(self, session):
        if session.turn.version == self.step:
            session.stop("interrupted", complete=False)


def everything(contents):
    """All tensors of a checkpoint by name, and its plain values."""
    kinds = ("parameters", "averages", "optimizer")
    return {f"{kind}/{name}": value for kind in kinds for name, value in getattr(contents, kind).items()}


def final(directory):
    manifest, contents = Store(Path(directory) / "checkpoints", writable=False).newest()
    return manifest, everything(contents), contents.values


def same(left, right):
    (theirs, tensors, values), (mine, my_tensors, my_values) = left, right
    assert (theirs.step, theirs.next_lease, theirs.unapplied) == (mine.step, mine.next_lease, mine.unapplied)
    assert values == my_values
    assert same_bits(tensors, my_tensors)
    return True


# --- one process


def alone(optimizer, directory, hooks=()):
    session, *_ = one_process(recipe_of(optimizer), Path(directory), hooks, batch_size=10, train_steps=STEPS, seed=3)
    return session.run()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_process_interrupted_anywhere_and_resumed_is_uninterrupted(optimizer, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    alone(optimizer, whole)

    @settings(max_examples=10, database=None)
    @given(stops=st.sets(st.integers(0, STEPS - 1), min_size=1, max_size=3))
    def interrupted_at(stops):
        with tempfile.TemporaryDirectory() as directory:
            for step in sorted(stops):
                assert alone(optimizer, directory, [Interrupt(step)]) == "interrupted"
            assert alone(optimizer, directory) == f"reached step {STEPS}"
            assert same(final(directory), final(whole))

    interrupted_at()


# --- sync mode


def together(optimizer, directory, *, until=None, before=None, ps=2, **options):
    """Train in sync mode, to the end or until a step at which everything is killed."""
    cluster = Cluster(
        recipe_of(optimizer), Path(directory), mode="sync", ps=ps, batch_size=10, train_steps=STEPS, seed=3,
        save_checkpoint_steps=1, keep=99, before=before, **options,
    )  # fmt: skip
    with cluster:
        workers = [Trainer(cluster, index) for index in range(cluster.settings.workers)]
        train(workers, until=until)
        if until is None:
            finished(workers)
    return cluster


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("momentum", {"workers": 3}),
        ("adam", {"workers": 2}),
        ("adam", {"workers": 2, "replicas_to_aggregate": 4, "accumulate": True}),
    ],
    ids=["momentum", "adam", "accumulating"],
)
def test_sync_killed_anywhere_and_resumed_is_uninterrupted(optimizer, options, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    together(optimizer, whole, **options)

    @settings(max_examples=4, database=None)
    @given(step=st.integers(1, STEPS - 1))
    def killed_at(step):
        with tempfile.TemporaryDirectory() as directory:
            first = together(optimizer, directory, until=step, **options)
            again = together(optimizer, directory, before=first, **options)
            assert 0 < again.leader.course.first_step <= step
            assert same(final(directory), final(whole))

    killed_at()


def test_sync_resumes_with_another_number_of_shards(tmp_path):
    together("momentum", tmp_path / "whole", ps=1, workers=2)
    first = together("momentum", tmp_path / "moved", ps=3, workers=2, until=6)
    together("momentum", tmp_path / "moved", ps=1, workers=2, before=first)

    _, tensors, _ = final(tmp_path / "moved")
    _, expected, _ = final(tmp_path / "whole")
    assert same_bits(tensors, expected)
