"""Towers with batches of their own size are one process at the sum of them."""

from __future__ import annotations

import pytest
import torch
import towers_in_one_process as in_threads
from torch import nn

from evener import errors
from evener.commands.account import account
from evener.data.dataset import Data, Tensors
from evener.policy.stretches import StretchState
from evener.recipes.recipe import Recipe
from evener.testing import Cluster, Trainer, differences, finished, one_process, same_bits, train
from evener.worker.exchange.shared_book import SharedBook

SIZES, STEPS = (12, 6, 3), 32


def recipe_of(dtype=torch.float64, **parts) -> Recipe:
    inputs = torch.randn(100, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    data = Data(Tensors(inputs, inputs[:, :1].sin()))
    everything = {
        "model": lambda: nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 1)).to(dtype), "data": lambda: data,
        "loss": nn.functional.mse_loss, "metrics": {},
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    } | parts  # fmt: skip
    return Recipe(**everything)


def alone(recipe, directory, steps=STEPS):
    session, _, _ = one_process(recipe, directory, train_steps=steps, batch_size=21)
    session.run()
    state = session.exchange._state
    return dict(zip([spec.name for spec in state.parameters.layout.specs], state.parameters.views, strict=True))


def together(recipe, directory, steps=STEPS, **options):
    sessions = in_threads.towers(recipe, directory, 3, train_steps=steps, **{"batch_sizes": SIZES} | options)
    assert in_threads.run(sessions) == [f"reached step {steps}"] * 3
    assert same_bits(in_threads.named(sessions[0]), in_threads.named(sessions[2])), "towers have come apart"
    return in_threads.named(sessions[0]), sessions


def test_towers_of_12_6_and_3_are_one_process_at_21(tmp_path):
    recipe = recipe_of()
    found, sessions = together(recipe, tmp_path / "towers")
    assert max(differences(found, alone(recipe, tmp_path / "alone"))) < 1e-12
    judged = account(tmp_path / "towers")
    assert judged.clean and judged.examples == STEPS * 21 and judged.by_samples, str(judged)
    assert sessions[0].exchange._inner._tally.examples == STEPS * 21


def test_the_loss_that_is_told_is_over_all_samples(tmp_path):
    recipe = recipe_of()
    _, sessions = together(recipe, tmp_path / "towers", 1)
    session, _, _ = one_process(recipe, tmp_path / "alone", train_steps=1, batch_size=21)
    session.run()
    told, expected = sessions[0].exchange._inner._tally.loss, session.exchange._tally.loss
    assert told == pytest.approx(expected, rel=1e-6)


class Steep(nn.Module):
    """In float16, with a gradient of 30,000 everywhere: 12 of them are no finite float16."""

    def __init__(self):
        super().__init__()
        self.row = nn.Parameter(torch.zeros(3, dtype=torch.float16))

    def forward(self, inputs):
        return self.row.sum() * 30_000 + 0 * inputs


def test_in_16_bits_no_sum_overflows(tmp_path):
    recipe = recipe_of(
        torch.float16, model=Steep, loss=lambda output, target: output[0, 0],
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-4),
    )  # fmt: skip
    found, _ = together(recipe, tmp_path, 1)
    assert found["row"].tolist() == pytest.approx([-3.0] * 3, rel=2e-3)


def test_it_goes_on_with_other_sizes_with_ps_tasks_and_in_one_process(tmp_path):
    recipe = recipe_of()
    expected = alone(recipe, tmp_path / "alone")
    together(recipe, tmp_path / "run", 8)
    together(recipe, tmp_path / "run", 16, batch_sizes=(1, 10, 10))
    options = {"mode": "sync", "workers": 2, "batch_sizes": (15, 6), "train_steps": 24}
    with Cluster(recipe, tmp_path / "run", **options) as cluster:
        workers = [Trainer(cluster, index) for index in range(2)]
        train(workers)
        finished(workers)
    assert max(differences(alone(recipe, tmp_path / "run"), expected)) < 1e-12
    judged = account(tmp_path / "run")
    assert judged.clean and judged.examples == STEPS * 21, str(judged)


class NotFinite(nn.Module):
    """Gives nan for one sample of the data, by its input."""

    def __init__(self, poison):
        super().__init__()
        self.net, self.poison = nn.Linear(7, 1).double(), poison

    def forward(self, inputs):
        bad = (inputs[:, :1] == self.poison).double()
        return self.net(inputs) + torch.where(bad > 0, torch.nan, 0.0) * self.net.weight.sum()


def test_a_batch_that_gives_nothing_finite_is_given_up_by_its_samples(tmp_path):
    clean = recipe_of()
    inputs = clean.data().train.inputs
    recipe = recipe_of(model=lambda: NotFinite(inputs[17, 0]))
    _, sessions = together(recipe, tmp_path, 5, on_nan="skip")
    judged = account(tmp_path)
    assert judged.clean and len(judged.skipped) == 1, str(judged)
    ((start, stop),) = judged.skipped
    assert 17 in sessions[0].batches.order.indices(start, stop)


def test_a_tower_without_memory_ends_the_run(tmp_path):
    class Small(nn.Linear):
        def forward(self, inputs):
            if len(inputs) > 6:
                raise torch.OutOfMemoryError("no room")
            return super().forward(inputs)

    sessions = in_threads.towers(
        recipe_of(model=lambda: Small(7, 1).double()), tmp_path, 3, train_steps=3, batch_sizes=SIZES
    )
    ends = in_threads.run(sessions)
    assert isinstance(ends[0], torch.OutOfMemoryError) and isinstance(ends[1], errors.PeerGone)


# --- the book of towers


def test_each_tower_has_the_lowest_that_are_left():
    book = SharedBook(None, SIZES, print)
    assert (book.leases, book.counts, book.entries(1)[1]) == ([0, 12, 18], [12, 6, 3], ((12, 18), 1, 0, 1))
    book.take()
    assert book.leases == [21, 33, 39] and book.state() == StretchState(21, ())


def test_what_is_given_up_is_told_and_the_others_come_again():
    closed = []
    book = SharedBook(None, SIZES, closed.append)
    book.refuse([12])
    assert closed == [(12, 18)] and list(zip(book.leases, book.counts, strict=True)) == [(0, 12), (18, 6), (24, 3)]
    assert book.state() == StretchState(18, ((0, 12),), ((12, 18),))
