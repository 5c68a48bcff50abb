"""A recipe's loader, step, optimizers and batches of a gradient: a plain loop over the same batches, in every way.

float64, a mean loss and no chance in the model: one process gives the plain loop's numbers, and N batches of a gradient
those of one batch that is N times as large.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler
from ways import EVERY_WAY, STEPS, WAYS, Tasks, replicas, run

import evener
from evener.commands.account import account
from evener.data.dataset import as_data
from evener.data.loader import LoaderBatches
from evener.errors import ConfigError, InputError
from evener.recipes.recipe import Recipe
from evener.session.evaluate import evaluate
from evener.testing import Cluster, differences, same_bits

BATCH = 4


class Pairs(Dataset):
    """Two inputs and a label, in a dictionary."""

    def __init__(self, count: int = 46) -> None:
        generator = torch.Generator().manual_seed(3)
        self.left, self.right = (torch.randn(count, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: int) -> dict:
        left, right = self.left[index], self.right[index]
        return {"inputs": (left, {"right": right}), "label": (left * right).sum()}


class Two(nn.Module):
    """It takes two inputs, and has two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5).double(), nn.Linear(5, 1).double()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.cat([left, right], 1))))[:, 0]


def step(model: nn.Module, batch: dict) -> dict:
    left, others = batch["inputs"]
    output = model(left, others["right"])
    return {"loss": nn.functional.mse_loss(output, batch["label"]), "bias": (output - batch["label"]).mean()}


def collate(samples: list) -> dict:
    """In the order of the labels, as no other does it."""
    return torch.utils.data.default_collate(sorted(samples, key=lambda sample: float(sample["label"])))


def optimizers(model: nn.Module) -> dict:
    return {
        "first": torch.optim.SGD(model.first.parameters(), lr=0.1, momentum=0.9),
        "second": torch.optim.Adam(model.second.parameters(), lr=0.01),
    }


def loader(batch_size: int = BATCH, **options) -> DataLoader:
    return DataLoader(Pairs(), **{"batch_size": batch_size, "shuffle": True, "collate_fn": collate, **options})


RECIPE = Recipe(model=Two, data=loader, step=step, optimizer=optimizers)


@dataclass
class Plain:
    """A loop as everybody writes it."""

    recipe: Recipe
    batches: LoaderBatches
    group: int = 1  # batches of an update

    def parameters(self, steps: int = STEPS) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = self.recipe.model()
        every = list(self.recipe.optimizer(model).values())
        for number in range(steps):
            for one in every:
                one.zero_grad()
            for lease in range(number * self.group, (number + 1) * self.group):
                (step(model, self.batches.batch(lease))["loss"] / self.group).backward()
            for one in every:
                one.step()
        return {name: tensor.detach() for name, tensor in model.named_parameters()}


def plain(recipe: Recipe, group: int = 1) -> dict[str, Tensor]:
    return Plain(recipe, LoaderBatches(as_data(recipe.data()).train, seed=0), group).parameters()


def trained(way: str, recipe: Recipe, directory, **options) -> dict[str, Tensor]:
    ran = run(way, recipe, directory, batch_size=100, **options)
    assert ran.error is None, ran.error
    found = account(directory)
    assert found.clean, str(found)
    return ran.parameters


def near(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return max(differences(left, right)) < 1e-12


@EVERY_WAY
def test_a_dict_of_batches_and_two_optimizers_are_the_plain_loop_in_every_way(way, tmp_path):
    assert near(trained(way, RECIPE, tmp_path), plain(RECIPE, group=replicas(way)))


@EVERY_WAY
@pytest.mark.parametrize("workers", [0, 2])
def test_three_batches_of_a_gradient_are_the_plain_loops_accumulation(way, workers, tmp_path):
    recipe = replace(RECIPE, data=lambda: loader(num_workers=workers), batches_per_step=3)

    found = trained(way, recipe, tmp_path)

    assert near(found, plain(RECIPE, group=3 * replicas(way)))


class Counting(evener.Hook):
    def __init__(self, seen: list) -> None:
        self.seen = seen

    def after_step(self, session, result) -> None:
        self.seen.append(result.examples)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("group", [1, 3])
def test_examples_are_those_that_were_in_the_batches(group, workers, tmp_path):
    """46 samples in batches of 4 are 12 batches, the last of 2; a sampler may draw batches of any size."""
    sizes = {"batch_size": [4] * 11 + [2], "batch_sampler": [1, 7, 3]}
    drawn = [list(range(size)) for size in sizes["batch_sampler"]]
    made = {
        "batch_size": lambda: loader(num_workers=workers),
        "batch_sampler": lambda: DataLoader(Pairs(), batch_sampler=drawn, collate_fn=collate, num_workers=workers),
    }
    for name, data in made.items():
        seen: list[int] = []
        recipe = replace(RECIPE, data=data, batches_per_step=group, hooks=lambda seen=seen: [Counting(seen)])
        result = evener.run(recipe, train_steps=12, logdir=tmp_path / name, quiet=True)

        batches = sizes[name] * 12
        assert seen == [sum(batches[step * group : (step + 1) * group]) for step in range(12)]
        assert result.examples == sum(seen)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batches", [1, 3])
def test_two_gradients_in_flight_are_of_each_batch_of_a_loader_once(batches, workers, tmp_path):
    """Two epochs, of 2 ps tasks and 2 workers, in whatever order."""
    recipe = replace(RECIPE, data=lambda: loader(num_workers=workers), batches_per_step=batches)
    length = len(loader())
    options = {"mode": "async", "in_flight": 2, "ps": 2, "workers": 2, "epochs": 2.0, "train_steps": None}

    with Cluster(recipe, tmp_path, **options) as cluster:
        ended = Tasks(cluster, [[], []]).run()

    assert not [end for end in ended.values() if isinstance(end, Exception)], ended
    found = account(tmp_path)
    assert found.clean, str(found)
    updates = -(-2 * length // batches)
    assert (found.updates, found.gradients, cluster.step) == (updates, updates, updates)


@pytest.mark.parametrize("way", ["one process", "2 towers", "3 ps"])
def test_the_loaders_processes_change_no_bit(way, tmp_path):
    runs = [
        trained(way, replace(RECIPE, data=lambda workers=workers: loader(num_workers=workers)), tmp_path / str(workers))
        for workers in (0, 2)
    ]
    assert same_bits(*runs)


@EVERY_WAY
def test_batches_of_a_gradient_are_one_batch_of_their_size(way, tmp_path):
    """Of a data set in memory, whose batches follow one another in one stream."""
    inputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    recipe = Recipe(
        model=lambda: nn.Linear(3, 2).double(), data=lambda: (inputs, (inputs.sum(1) > 0).long()), metrics={},
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )  # fmt: skip
    large = run("one process", recipe, tmp_path / "large", batch_size=2 * 3 * replicas(way))

    several = run(way, recipe, tmp_path / "several", batch_size=2, batches_per_step=3)

    assert several.error is None
    assert near(several.parameters, large.parameters)
    found = account(tmp_path / "several")
    assert found.clean, str(found)
    assert (found.updates, found.gradients) == (STEPS, STEPS * replicas(way))
    assert found.examples == STEPS * 2 * 3 * replicas(way)


@EVERY_WAY
def test_a_run_that_goes_on_is_one_that_was_never_ended(way, tmp_path):
    recipe = replace(RECIPE, data=lambda: loader(num_workers=1), batches_per_step=2)
    whole = trained(way, recipe, tmp_path / "whole", train_steps=9)

    first = run(way, recipe, tmp_path / "parts", batch_size=100, train_steps=4)
    parts = trained(way, recipe, tmp_path / "parts", train_steps=9, before=first)

    assert same_bits(whole, parts)


def test_epochs_are_the_loaders_and_an_incomplete_group_reaches_into_the_next(tmp_path):
    """46 samples are 12 batches, the last of 2: 2 epochs of 24 batches are 5 gradients of 5, and 1 over."""
    seen = []
    recipe = replace(
        RECIPE, batches_per_step=5,
        lr_scheduler=lambda optimizer, steps, exact: seen.append((steps, exact)) or torch.optim.lr_scheduler.StepLR(
            optimizer, 3
        ),
    )  # fmt: skip
    ran = run("one process", recipe, tmp_path, batch_size=100, epochs=2, train_steps=None)

    found = account(tmp_path)
    assert ran.error is None
    assert seen == [(3, Fraction(12, 5))]
    assert (found.updates, found.examples, found.samples, found.epochs) == (5, 25, 12, 2)
    assert "25 batches applied; 2 whole epochs of 12: each batch exactly once" in str(found)


def test_a_loss_that_is_not_finite_names_epoch_and_batch(tmp_path):
    recipe = replace(RECIPE, step=lambda model, batch: step(model, batch)["loss"] * float("nan"), batches_per_step=3)
    ran = run("one process", recipe, tmp_path, batch_size=100)
    assert "lease 0 and 2 more (epoch 1, batch 1 of 12)" in ran.error.what


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_that_gives_no_finite_gradient_is_given_up_with_its_group(way, tmp_path):
    def poisoned(model: nn.Module, batch: dict) -> Tensor:
        loss = step(model, batch)["loss"]
        return loss * float("nan") if bool((batch["inputs"][0] == Pairs().left[7]).all(1).any()) else loss

    recipe = replace(RECIPE, step=poisoned, batches_per_step=2)
    ran = run(way, recipe, tmp_path, batch_size=100, on_nan="skip", train_steps=6)

    found = account(tmp_path)
    assert ran.error is None
    assert found.clean, str(found)
    assert sum(stop - start for start, stop in found.skipped) % 2 == 0
    assert found.skipped


def test_validation_figures_are_those_of_step_each_sample_counted_once():
    recipe = replace(RECIPE, data=lambda: (loader(), {"loader": loader(5), "samples": Pairs()}))
    data = as_data(recipe.data()).of_any_form()
    torch.manual_seed(0)
    model = recipe.model()

    found = evaluate(model, recipe, data.validations, batch_size=7)

    everything = torch.utils.data.default_collate(list(Pairs()))
    with torch.no_grad():
        loss = float(step(model, everything)["loss"])
    assert set(found) == {
        f"validation_{name}_{figure}" for name in ("loader", "samples") for figure in ("loss", "bias")
    }
    assert found["validation_loader_loss"] == pytest.approx(loss)
    assert found["validation_samples_loss"] == pytest.approx(loss)


def test_a_validation_of_the_recipes_own_gets_the_loaders_batches():
    seen = []
    recipe = replace(RECIPE, evaluate=lambda model, batches: {"n": seen.append(len(batches)) or len(list(batches))})
    assert evaluate(Two(), recipe, as_data((loader(), loader())).validations, batch_size=7) == {"validation_n": 12.0}
    assert seen == [46]


def test_a_weighted_sampler_draws_anew_for_each_epoch_and_alike_in_every_process():
    def batches() -> LoaderBatches:
        sampler = WeightedRandomSampler([float(n % 3 == 0) for n in range(46)], num_samples=20)
        return LoaderBatches(as_data(loader(shuffle=None, sampler=sampler)).train, seed=4)

    here, there = batches(), batches()
    labels = [here.batch(lease)["label"] for lease in range(10)]
    assert all(torch.equal(there.batch(lease)["label"], labels[lease]) for lease in reversed(range(10)))
    assert not torch.equal(torch.cat(labels[:5]), torch.cat(labels[5:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_as_they_are_asked_for_whatever_was_expected(workers):
    batches = LoaderBatches(as_data(loader(num_workers=workers)).train, seed=1)
    right = LoaderBatches(as_data(loader()).train, seed=1)
    try:
        for expected, asked in (
            ([0, 2, 4, 6], [0, 2]),
            ([4, 6, 8], [6, 4]),
            ([], [8, 3]),
            ([5, 7], [30, 5]),
            ([], [0]),
        ):
            batches.expect(expected)
            for lease in asked:
                assert torch.equal(batches.batch(lease)["label"], right.batch(lease)["label"])
    finally:
        batches.close()


# --- what is refused


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


def test_a_loader_over_a_stream_is_refused():
    with pytest.raises(InputError, match="batches have no numbers") as error:
        as_data(DataLoader(Stream()))
    assert "evener.join" in error.value.fix


@pytest.mark.parametrize("size", [5, 101])
def test_another_batch_size_than_the_loaders_is_refused_by_name(size, tmp_path):
    with pytest.raises(ConfigError, match=f"--batch-size {size} beside a DataLoader with batch_size=4"):
        run("one process", RECIPE, tmp_path, batch_size=size)


REFUSED = {
    "loss": ({"loss": nn.functional.mse_loss}, "both a loss and a step"),
    "metrics": ({"metrics": {"mine": lambda output, target: 0}}, "both metrics and a step"),
    "no function": ({"step": 3}, r"step is an int, not a function \(model, batch\)|step is .*, not a function"),
    "no batches": ({"batches_per_step": 0}, "batches_per_step=0 cannot work"),
    "true": ({"batches_per_step": True}, "batches_per_step=True cannot work"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_step_stands_for_is_not_given_beside_it(kind):
    parts, says = REFUSED[kind]
    with pytest.raises(ConfigError, match=says):
        replace(RECIPE, **parts)


def test_a_step_that_returns_no_loss_is_refused_with_its_line(tmp_path):
    recipe = replace(RECIPE, step=lambda model, batch: {"bias": step(model, batch)["bias"]})
    ran = run("one process", recipe, tmp_path, batch_size=100)
    assert "returned a dictionary of 'bias'" in ran.error.what
    assert "test_recipes_freedom.py" in ran.error.what


@EVERY_WAY
def test_a_loader_without_a_batch_size_has_the_runs(way, tmp_path):
    """The same batches as those of a loader of that size."""
    options = {"collate": collate, "drop_last": True}
    ours = replace(RECIPE, data=lambda: evener.loader(Pairs(), **options))
    theirs = replace(RECIPE, data=lambda: loader(5, drop_last=True))

    ran = run(way, ours, tmp_path, batch_size=5)

    assert ran.error is None
    assert near(ran.parameters, plain(theirs, group=replicas(way)))


def test_a_validation_loader_without_a_batch_size_has_that_of_validations():
    data = as_data((evener.loader(Pairs()), {"v": evener.loader(Pairs(), shuffle=False)})).sized(4, 9)
    assert (data.train.size, len(data.train)) == (4, 12)
    assert [count for count, _ in data.validations["v"].whole().counted()] == [9] * 5 + [1]
