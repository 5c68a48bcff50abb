"""The figures of a validation: what they are called, that they are right, and the same each time."""

import random

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from validating import DATA, INPUTS, TARGET, figures, recipe_of, run

import evener
from evener.data.dataset import Data, Tensors
from evener.errors import ConfigError

# --- what is measured


class ByName:
    """Samples 0..1499 in a dictionary: their target is their number. Its mean is 749.5."""

    def __len__(self):
        return 1500

    def batch(self, indices):
        return indices.float().unsqueeze(1), {"number": indices.float(), "zero": torch.zeros(len(indices))}


def test_samples_with_targets_in_a_dictionary_are_counted_by_the_indices_asked_for():
    recipe = recipe_of(
        lambda: nn.Linear(1, 1), lambda: (ByName(), ByName()),
        loss=lambda output, target: target["number"].mean(), metrics={},
    )  # fmt: skip
    assert figures(recipe, batch_size=1000) == {"validation_loss": pytest.approx(749.5)}


def own(model, batches):
    """Not a mean over batches."""
    with_targets = [(model(inputs).argmax(1), target) for inputs, target in batches]
    return {"samples": len(batches), "batches": len(with_targets), "training": model.training,
            "gradients": torch.is_grad_enabled(), "right": torch.tensor(5)}  # fmt: skip


def test_a_validation_of_ones_own_takes_the_place_of_loss_and_metrics(tmp_path):
    result = run(recipe_of(evaluate=own, ema_decay=0.9), tmp_path)
    expected = {"samples": 70.0, "batches": 7.0, "training": 0.0, "gradients": 0.0, "right": 5.0}

    assert result.validation == {f"validation_{key}{ema}": v for ema in ("", "_ema") for key, v in expected.items()}
    assert result.validation_loss is None
    assert evener.evaluate(recipe_of(evaluate=own), tmp_path)["validation_samples"] == 70.0


@pytest.mark.parametrize("returned", [None, 0.5, [("f1", 0.5)], {1: 0.5}], ids=repr)
def test_a_validation_that_gives_no_figures_by_name_is_refused(returned):
    with pytest.raises(ConfigError) as error:
        figures(recipe_of(evaluate=lambda model, batches: returned))
    assert error.value.what == f"the recipe's evaluate returned {returned!r}."
    assert "dictionary" in error.value.fix


def test_a_figure_that_is_no_single_number_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r"'each' has shape \[10\]"):
        figures(recipe_of(metrics={"each": lambda output, target: output[:, 0]}))
    with pytest.raises(ConfigError, match=r"'f1' has shape \[3\]"):
        figures(recipe_of(evaluate=lambda model, batches: {"f1": torch.zeros(3)}))


def test_a_figure_that_is_text_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="'f1' is 'high'"):
        figures(recipe_of(evaluate=lambda model, batches: {"f1": "high"}))


SEVERAL = {"clean": DATA, "noisy": (INPUTS + 1.0, TARGET)}
FORMS = {
    "Data": lambda: Data(DATA, SEVERAL),
    "pair": lambda: (DATA, SEVERAL),
    "dictionary": lambda: {"train": DATA, "validation": SEVERAL},
}
NAMES = {f"validation_{name}_{figure}" for name in SEVERAL for figure in ("loss", "accuracy")}


@pytest.mark.parametrize("form", FORMS)
def test_several_validation_sets_give_figures_by_their_names(form):
    values = figures(recipe_of(data=FORMS[form]))
    assert values.keys() == NAMES
    assert values["validation_clean_loss"] != values["validation_noisy_loss"]


def test_they_stand_in_the_result_in_tensorboard_and_in_evener_eval(tmp_path):
    recipe = recipe_of(data=FORMS["pair"])
    result = run(recipe, tmp_path)

    assert result.validation.keys() == NAMES
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= NAMES
    for name in NAMES:
        assert events.Scalars(name)[-1].value == pytest.approx(result.validation[name])
    assert evener.evaluate(recipe, tmp_path).keys() >= NAMES


class Noisy(Tensors):
    """Random transforms, by whichever generator people use."""

    def batch(self, indices):
        inputs, target = super().batch(indices)
        noise = torch.rand(()) + np.random.rand() + random.random()
        return inputs * float(noise), target


def test_random_transforms_in_a_validation_set_give_the_same_figures_each_time():
    recipe, model = recipe_of(data=lambda: (DATA, Noisy(*DATA))), nn.Linear(8, 3)
    first = figures(recipe, model)
    torch.rand(3), np.random.rand(3), random.random()  # as training does meanwhile

    assert figures(recipe, model) == first


def test_a_validation_with_random_transforms_changes_nothing_of_what_is_trained(tmp_path):
    recipe = recipe_of(data=lambda: (Noisy(*DATA), Noisy(*DATA)))
    often, never = (run(recipe, tmp_path / str(every), eval_every=every).model() for every in (1, None))
    assert torch.equal(often.weight, never.weight)


def test_a_random_split_is_the_same_in_evener_eval_as_in_training(tmp_path):
    def split():
        return torch.utils.data.random_split(torch.utils.data.TensorDataset(*DATA), [50, 20])

    recipe = recipe_of(data=split, evaluate=lambda model, batches: {"sum": sum(x.sum() for x, _ in batches)})
    trained = {seed: run(recipe, tmp_path / str(seed), seed=seed).validation["validation_sum"] for seed in (3, 4)}

    assert trained[3] != trained[4]
    for seed, value in trained.items():
        assert evener.evaluate(recipe, tmp_path / str(seed))["validation_sum"] == value


# --- a metric that does not fit


def test_a_metric_that_fails_is_told_after_the_first_step_with_the_users_own_error(tmp_path):
    def f1(output, target):
        raise ZeroDivisionError("no positive sample")

    with pytest.raises(ZeroDivisionError, match="no positive sample") as error:
        run(recipe_of(metrics={"f1": f1}), tmp_path)
    assert "global step 1, local step 2" in "".join(error.value.__notes__)
    assert "hook" not in "".join(error.value.__notes__)
