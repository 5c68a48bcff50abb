"""Which modules train is the model's affair: what model() has put into eval() stays so, also after a validation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from ways import BATCH, EVERY_WAY, STEPS, recipe_of, replicas, run, went_well

from evener.data.dataset import as_data
from evener.session.evaluate import Evaluate

from plain import assert_same, plain  # isort: skip  (ways.py knows where it is)


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def one_layer_rests() -> nn.Module:
    model = normalized()
    model[1].eval()
    return model


def all_rest() -> nn.Module:
    """As libraries of pretrained models hand them out."""
    return normalized().eval()


class Stubborn(nn.Module):
    """Keeps its normalization in eval(), whoever calls train()."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = normalized()
        self.train()

    def train(self, mode: bool = True):
        super().train(mode)
        self.layers[1].eval()
        return self

    def forward(self, x):
        return self.layers(x)


def validated(way, made, directory):
    """Trained with a validation after each update."""
    recipe = recipe_of(made)
    sets = as_data(recipe.data()).validations
    return went_well(run(way, recipe, directory, lambda worker: [Evaluate(sets, 1, 7)]))


def expected(way, made):
    return plain(recipe_of(made), replicas(way), steps=STEPS, batch_size=BATCH).parameters


@EVERY_WAY
@pytest.mark.parametrize("made", [one_layer_rests, Stubborn])
def test_a_normalization_that_rests_counts_no_batch_also_after_validations(made, way, tmp_path):
    ran = validated(way, made, tmp_path)

    assert [int(value) for name, value in ran.parameters.items() if name.endswith("num_batches_tracked")] == [0]
    assert_same(ran.parameters, expected(way, made), steps=STEPS)
    for session in ran.sessions:
        model = session.towers.model
        assert model.training
        assert [type(m).__name__ for m in model.modules() if not m.training] == ["BatchNorm1d"]


@EVERY_WAY
def test_a_model_that_rests_as_a_whole_is_trained(way, tmp_path):
    ran = validated(way, all_rest, tmp_path)

    assert int(ran.parameters["1.num_batches_tracked"]) == STEPS
    assert_same(ran.parameters, expected(way, normalized), steps=STEPS)


@EVERY_WAY
def test_validations_change_nothing_of_the_training(way, tmp_path):
    ran = validated(way, normalized, tmp_path)
    assert_same(ran.parameters, expected(way, normalized), steps=STEPS)
    assert sum(len(session.evaluations) for session in ran.sessions) >= STEPS - 1


@EVERY_WAY
def test_dropout_that_rests_drops_nothing(way, tmp_path):
    def resting():
        model = nn.Sequential(nn.Dropout(0.9), nn.Linear(8, 3))
        model[0].eval()
        return model

    ran = validated(way, resting, tmp_path)
    assert_same(ran.parameters, expected(way, resting), steps=STEPS)
    assert not torch.equal(ran.parameters["1.weight"], torch.zeros(3, 8))
