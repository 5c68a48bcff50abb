"""`evener eval`: a checkpoint on its recipe's validation set."""

from pathlib import Path

import pytest
import torch
from torch import nn
from training import Net, recipe_of, save, shards_of, train, whole_of

from evener.commands.assess import assess
from evener.data.dataset import Data, Tensors
from evener.errors import CheckpointError, ConfigError, InputError
from evener.recipes.recipe import Recipe
from evener.state.checkpoint import MANIFEST, Store

RECIPE = recipe_of(ema_decay=0.9)


@pytest.fixture
def logdir(tmp_path):
    """A logdir with checkpoints of steps 1 and 2, of three shards."""
    store = Store(tmp_path / "checkpoints")
    states = shards_of(RECIPE, 3)
    for _ in range(2):
        train(states, 1)
        save(store, states)
    store.close()
    return tmp_path


@pytest.fixture
def checkpoints(logdir):
    return logdir / "checkpoints"


def expected(what: str) -> float:
    """The loss of step 2 by hand."""
    states = shards_of(RECIPE)
    train(states, 2)
    model = Net().eval()
    model.load_state_dict(whole_of(states, what) | {"fixed": states[0].frozen["fixed"]})
    inputs, target = RECIPE.data()[1]
    with torch.no_grad():
        return float(RECIPE.loss(model(inputs), target))


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step-00000002"])
def test_a_logdir_its_checkpoints_and_one_of_them_all_name_the_newest(logdir, where):
    values = assess(RECIPE, logdir / where, {})

    assert values["global_step"] == 2
    assert values["checkpoint"] == str(logdir / "checkpoints/step-00000002")


def test_the_loss_is_that_of_the_parameters_and_of_their_averages(logdir):
    values = assess(RECIPE, logdir, {})

    assert values["validation_loss"] == pytest.approx(expected("parameters"), rel=1e-6)
    assert values["validation_loss_ema"] == pytest.approx(expected("averages"), rel=1e-6)
    assert values["validation_loss"] != values["validation_loss_ema"]
    assert 0 <= values["validation_accuracy"] <= 1
    assert 0 <= values["validation_accuracy_ema"] <= 1


def test_an_older_one_can_be_named(checkpoints):
    assert assess(RECIPE, checkpoints / "step-00000001", {})["global_step"] == 1


def test_a_recipe_without_averages_has_none(tmp_path):
    plain = recipe_of()
    store = Store(tmp_path)
    save(store, shards_of(plain))
    store.close()

    assert not [name for name in assess(plain, tmp_path, {}) if name.endswith("_ema")]


def test_reading_needs_no_lock_and_leaves_no_trace(logdir, checkpoints):
    running = Store(checkpoints)
    before = sorted(logdir.rglob("*"))
    assess(RECIPE, logdir, {})
    running.close()

    assert sorted(logdir.rglob("*")) == before


# --- damage


def test_a_damaged_one_that_was_named_is_refused_with_the_newest_good_one(checkpoints):
    (checkpoints / "step-00000002/parameters-1.safetensors").write_bytes(b"x")

    with pytest.raises(CheckpointError, match=r"parameters-1\.safetensors has 1 bytes") as refused:
        assess(RECIPE, checkpoints / "step-00000002", {})
    assert refused.value.fix == f"use the newest good one: {checkpoints / 'step-00000001'}."


def test_a_logdir_whose_newest_is_damaged_gives_the_newest_good_one(logdir, checkpoints):
    (checkpoints / "step-00000002/parameters-1.safetensors").write_bytes(b"x")

    assert assess(RECIPE, logdir, {})["checkpoint"] == str(checkpoints / "step-00000001")


def test_when_no_other_is_whole_that_is_said(checkpoints):
    for step in (1, 2):
        (checkpoints / f"step-0000000{step}/parameters-1.safetensors").unlink()

    with pytest.raises(CheckpointError) as refused:
        assess(RECIPE, checkpoints / "step-00000002", {})
    assert refused.value.fix == "no other one here is whole."


def test_a_directory_that_was_never_a_checkpoint_is_refused_with_the_way_to_name_one(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint in") as refused:
        assess(RECIPE, tmp_path, {})
    assert "name a logdir" in refused.value.fix
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        assess(RECIPE, tmp_path / "nowhere", {})


def test_a_step_without_a_manifest_is_refused(checkpoints):
    (checkpoints / "step-00000002" / MANIFEST).unlink()

    with pytest.raises(CheckpointError, match="is not a checkpoint") as refused:
        assess(RECIPE, checkpoints / "step-00000002", {})
    assert "step-00000001" in refused.value.fix


# --- another model


class Wider(Net):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(61, 8)


class Deeper(Net):
    def __init__(self):
        super().__init__()
        self.third = nn.Linear(5, 5)


class Shallower(Net):
    def __init__(self):
        super().__init__()
        del self.scale


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (Wider, r"'second\.\w+' is \[5.*\] in it, \[8.*\] in the model"),
        (Deeper, r"it lacks 'third\.weight'"),
        (Shallower, "it has 'scale', the model has not"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_the_first_difference(logdir, model, difference):
    with pytest.raises(CheckpointError, match=f"step-00000002 is of another model: {difference}") as refused:
        assess(recipe_of(model=model), logdir, {})
    assert refused.value.fix == "give the same recipe and the same --set options."


def test_a_recipe_without_validation_data_is_refused(logdir):
    recipe = Recipe(
        model=RECIPE.model,
        optimizer=RECIPE.optimizer,
        data=lambda: Data(Tensors(torch.zeros(3, 7), torch.zeros(3, dtype=torch.int64))),
    )

    with pytest.raises(InputError, match="has no validation data"):
        assess(recipe, logdir, {})


def test_a_finished_recipe_takes_no_options(logdir):
    with pytest.raises(ConfigError, match="takes no options"):
        assess(RECIPE, logdir, {"hidden": 3})


def test_the_options_it_was_trained_with_count_unless_others_are_given(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from training import recipe_of
asked = []
def mine(*, width: int = 0):
    asked.append(width)
    return recipe_of()
""")
    store = Store(tmp_path / "logdir" / "checkpoints")
    save(store, shards_of(recipe_of()), recipe=f"{file}:mine", options={"width": 7})
    store.close()

    from evener.recipes.references import find

    assess(f"{file}:mine", tmp_path / "logdir", {})
    assess(f"{file}:mine", tmp_path / "logdir", {"width": 9})
    assert find(f"{file}:asked") == [7, 9]


def test_a_model_with_tied_weights_can_be_assessed(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(7, 7)
            self.two = nn.Linear(7, 7)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    recipe = recipe_of(model=Tied)
    store = Store(tmp_path)
    save(store, shards_of(recipe))
    store.close()

    assert assess(recipe, tmp_path, {})["global_step"] == 0
