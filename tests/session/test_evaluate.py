"""Validation leaves no trace in the model, and takes as many samples at once as people say."""

import pytest
import torch
from torch import nn
from validating import INPUTS, figures, recipe_of, run

import evener
from evener.session.evaluate import untouched

# --- no trace


class Restless(nn.Module):
    """Writes into a buffer in place, puts another one into the place of a second, and makes a third: in eval() too."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("in_place", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("fleeting", torch.zeros(3), persistent=False)
        self.register_buffer("fleeting_replaced", torch.zeros(3), persistent=False)
        self.register_buffer("made", None, persistent=False)

    def forward(self, inputs):
        output = self.linear(inputs)
        mean = output.detach().mean(0)
        self.in_place += mean
        self.replaced = self.replaced + mean
        self.fleeting += mean
        self.fleeting_replaced = torch.full((7,), 1.0)
        self.made = mean
        return output


BUFFERS = ("in_place", "replaced", "fleeting", "fleeting_replaced", "made")


def mixed():
    """Some of its modules are in eval(), as a recipe may freeze them."""
    model = nn.Sequential(Restless(), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    model[1].eval()
    return model


def state_of(model):
    modes = [module.training for module in model.modules()]
    return modes, {name: (b, b.clone()) for name, b in model.named_buffers()} | {"made": (model[0].made, None)}


def check_as_before(model, before):
    modes, buffers = before
    assert [module.training for module in model.modules()] == modes
    for name, (buffer, value) in state_of(model)[1].items():
        assert buffer is buffers[name][0], f"{name} is another tensor now"
        assert value is None or torch.equal(value, buffers[name][1]), name


def test_modes_and_buffers_are_as_before():
    model = mixed()
    before = state_of(model)

    figures(recipe_of(), model)
    check_as_before(model, before)


def test_modes_and_buffers_are_as_before_also_after_an_error():
    model = mixed()
    before = state_of(model)

    def fails(output, target):
        raise ZeroDivisionError("the user's own")

    with pytest.raises(ZeroDivisionError, match="the user's own"):
        figures(recipe_of(metrics={"mine": fails}), model)
    check_as_before(model, before)


def test_within_it_all_is_in_eval():
    model = mixed()
    with untouched(model):
        assert not any(module.training for module in model.modules())


def test_a_validation_now_and_then_changes_nothing_of_what_is_trained(tmp_path):
    """Not by modes, buffers, or the random numbers of Dropout."""
    recipe = recipe_of(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)))
    often, never = (run(recipe, tmp_path / str(every), eval_every=every).model() for every in (1, None))
    for name, value in never.state_dict().items():
        assert torch.equal(often.state_dict()[name], value), name


class Table(nn.Module):
    """Makes a table at its first forward and keeps it, as rotary embeddings and masks do."""

    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(8, 8), None

    def forward(self, inputs):
        if self.table is None:
            self.table = torch.cos(torch.arange(8.0))
        return self.linear(inputs) * self.table


def test_what_a_layer_made_in_a_validation_can_be_trained_on_with():
    model = nn.Sequential(Table(), nn.Linear(8, 3))
    figures(recipe_of(), model)

    assert not model[0].table.is_inference()
    model(INPUTS).sum().backward()
    assert model[0].linear.weight.grad is not None


class Witness(nn.Module):
    """Notes of each batch whether it was one of training, and its samples."""

    def __init__(self, seen):
        super().__init__()
        self.linear, self.seen = nn.Linear(8, 3), seen

    def forward(self, inputs):
        self.seen.append((self.training, len(inputs)))
        return self.linear(inputs)


class Seen(list):
    """No state of a module: a list of its own kind, that copies refer to."""


def batches_seen(tmp_path, **options):
    seen = Seen()
    run(recipe_of(lambda: Witness(seen)), tmp_path / "run", **options)
    return seen


def test_a_model_sees_a_batch_of_training_before_any_of_validation(tmp_path):
    seen = batches_seen(tmp_path, train_steps=3)

    assert seen[0] == (True, 10)
    assert seen[1] == (False, 2), "a metric that does not fit is told after the first step"
    assert [one for one in seen if one[0]] == [(True, 10)] * 3


def test_a_layer_that_is_shaped_by_its_first_batch_is_shaped_by_one_of_training(tmp_path):
    class Shaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.size = nn.Linear(8, 3), None

        def forward(self, inputs):
            self.size = self.size or len(inputs)
            assert self.size == 10
            return self.linear(inputs)

    assert run(recipe_of(Shaped), tmp_path).global_step == 6


# --- samples at once


def test_as_many_samples_are_validated_at_once_as_are_trained_on(tmp_path):
    validated = [count for training, count in batches_seen(tmp_path, batch_size=30) if not training][1:]
    assert validated == [30, 30, 10]


def test_or_as_many_as_people_say(tmp_path):
    seen = batches_seen(tmp_path, eval_batch_size=50)
    assert [count for training, count in seen if not training][1:] == [50, 20]


@pytest.mark.parametrize(("given", "counts"), [({}, [10] * 7), ({"batch_size": 40}, [40, 30])])
def test_evener_eval_takes_the_batch_size_of_the_training_or_the_given_one(tmp_path, given, counts):
    seen = Seen()
    recipe = recipe_of(lambda: Witness(seen))
    result = run(recipe, tmp_path)
    seen.clear()

    values = evener.evaluate(recipe, tmp_path, **given)
    assert [count for _, count in seen] == counts
    assert values["validation_loss"] == pytest.approx(result.validation_loss)


def test_figures_do_not_depend_on_the_samples_at_once():
    recipe, model = recipe_of(), nn.Linear(8, 3)
    whole = figures(recipe, model, batch_size=70)
    for size in (1, 9, 1000):
        assert figures(recipe, model, batch_size=size) == pytest.approx(whole, rel=1e-5)
