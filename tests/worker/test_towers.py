"""One batch in, its gradient in the flat buffer out, whatever the model does on the way."""

import copy

import pytest
import torch
from torch import nn
from training import large_ones

from evener.errors import ConfigError
from evener.recipes.recipe import Recipe
from evener.state.tensors import specs_of, whole_views
from evener.wire.layout import Layout
from evener.worker.compute.towers import Towers
from evener.worker.exchange.exchange import OneOf

TARGET = torch.zeros(4)


def squared(output, target):
    return (output.sum(-1) - target).pow(2).mean()


class Parts:
    """A model between two memory blocks, and views of the one that `Towers` fills."""

    def __init__(self, model, *, loss=squared, shards=1, seed=0, apart=False, **parts):
        self.model = model
        layout = Layout(specs_of(model), shards=shards)
        self.memory, self.gradients = (torch.zeros(layout.nbytes, dtype=torch.uint8).numpy().data for _ in range(2))
        recipe = Recipe(
            model=lambda: model, data=lambda: (None, None), loss=loss,
            optimizer=lambda made: torch.optim.SGD(made.parameters(), lr=1.0), **parts,
        )  # fmt: skip
        memory = {"parameters": self.memory, "gradients": self.gradients}
        self.towers = Towers(model, recipe, layout, **memory, seed=seed, apart=apart)
        self.unused = ()
        self.parameter, self.gradient = whole_views(layout, self.memory), whole_views(layout, self.gradients)

    def compute(self, batch, lease):
        """Of one batch; they lie in the memory then."""
        loss = self.towers.begin(batch, lease)
        self.unused = self.towers.collect()
        return loss


def plain(model, inputs, loss=squared):
    """What autograd alone gives."""
    model.zero_grad()
    loss(model(inputs), TARGET).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_the_model_lives_in_the_memory_that_travels():
    model = nn.Linear(3, 2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    parts = Parts(model)

    assert all(torch.equal(parts.parameter[name], value) for name, value in before.items())
    parts.parameter["bias"].fill_(7.0)  # as when an answer lands there
    assert torch.equal(model.bias.detach(), torch.tensor([7.0, 7.0]))


@pytest.mark.parametrize("shards", [1, 3])
def test_gradients_equal_plain_autograd_bit_for_bit(shards):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 5))
    inputs = torch.randn(4, 40)
    expected, loss = plain(model, inputs), squared(model(inputs), TARGET)
    parts = Parts(model, shards=shards)

    assert parts.compute((inputs, TARGET), 0) == float(loss.detach())
    for name, gradient in expected.items():
        assert torch.equal(parts.gradient[name], gradient), name
    assert parts.towers.copy_of_gradients().keys() == expected.keys()


def test_every_batch_starts_from_nothing():
    model = nn.Linear(3, 2)
    parts = Parts(model)
    parts.compute((torch.ones(4, 3), TARGET), 0)
    once = parts.gradient["weight"].clone()
    parts.compute((torch.ones(4, 3), TARGET), 1)

    assert torch.equal(parts.gradient["weight"], once)


def test_the_penalty_is_part_of_loss_and_gradient():
    model = nn.Linear(3, 2, bias=False)
    inputs, weight = torch.zeros(4, 3), model.weight.detach().clone()
    parts = Parts(model, penalty=lambda made: 0.5 * made.weight.pow(2).sum())

    loss = parts.compute((inputs, TARGET), 0)
    assert loss == pytest.approx(float(0.5 * weight.pow(2).sum()))
    assert torch.allclose(parts.gradient["weight"], weight)


class Branches(nn.Module):
    """Uses one of two layers, as the batch says."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, inputs):
        return (self.left if inputs[0, 0] > 0 else self.right)(inputs)


def test_a_parameter_that_the_batch_did_not_use_has_gradient_zero():
    parts = Parts(Branches())
    parts.compute((torch.ones(4, 3), TARGET), 0)
    assert parts.gradient["left.weight"].any()
    assert not parts.gradient["right.weight"].any()

    parts.compute((-torch.ones(4, 3), TARGET), 1)  # nothing of the batch before is left
    assert not parts.gradient["left.weight"].any()
    assert parts.gradient["right.weight"].any()


def test_sparse_gradients_travel_dense_and_add_up():
    dense, sparse = nn.Embedding(10, 3), nn.Embedding(10, 3, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    inputs = torch.tensor([[1, 1], [4, 1], [9, 9], [0, 4]])

    def loss(output, target):
        return (output.sum((1, 2)) - target).pow(2).mean()

    expected = plain(dense, inputs, loss)["weight"]
    parts = Parts(sparse, loss=loss)
    parts.compute((inputs, TARGET), 0)
    assert torch.equal(parts.gradient["weight"], expected)
    parts.compute((inputs[:1], TARGET), 1)
    assert not parts.gradient["weight"][9].any()


def test_frozen_parameters_get_none_and_do_not_travel():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    parts = Parts(model)
    parts.compute((torch.ones(4, 3), TARGET), 0)

    assert parts.towers.names == ["weight"]
    assert list(parts.gradient) == ["weight"]


def test_the_buffers_of_batchnorm_travel_with_the_gradient():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    parts = Parts(model)
    parts.compute((torch.randn(4, 3), TARGET), 0)

    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(parts.gradient[name], model.state_dict()[name])
    assert int(parts.gradient["1.num_batches_tracked"]) == 1
    parts.parameter["1.running_mean"].fill_(5.0)  # an answer lands
    assert torch.equal(model[1].running_mean, torch.tensor([5.0, 5.0]))


class Counts(nn.Module):
    """Puts a new tensor in place of its buffer, as people do."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs):
        self.seen = self.seen + len(inputs)
        return inputs * self.scale


def test_a_buffer_that_the_model_replaces_travels_too():
    model = Counts()
    parts = Parts(model)
    for lease in range(3):
        parts.compute((torch.ones(4, 3), TARGET), lease)
        assert float(parts.gradient["seen"]) == 4 * (lease + 1)

    parts.parameter["seen"].fill_(100.0)
    assert float(model.seen) == 100.0


def test_what_is_random_depends_on_seed_and_lease_alone():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(30, 30), nn.Dropout(0.5))
    parts, batch = Parts(model, seed=5), (torch.ones(4, 30), TARGET)
    first = parts.compute(batch, 7)
    torch.rand(11)
    other = parts.compute(batch, 8)

    assert parts.compute(batch, 7) == first != other
    assert Parts(model, seed=6).compute(batch, 7) != first


def test_any_seed_that_pytorch_takes_is_fine():
    parts = Parts(nn.Linear(3, 2), seed=2**63)
    parts.compute((torch.ones(4, 3), TARGET), 10**9)


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda output, target: 0.5, r"the recipe's loss \(test_towers.py, line \d+\) returned float, not a tensor"),
        (lambda output, target: output.sum(-1), r"the recipe's loss .* has shape \[4\], not a scalar"),
        (lambda output, target: output.sum().detach(), "does not depend on the model's parameters"),
    ],
)
def test_a_loss_that_cannot_be_differentiated_is_refused(loss, what):
    parts = Parts(nn.Linear(3, 2), loss=loss)

    with pytest.raises(ConfigError, match=what) as refused:
        parts.compute((torch.ones(4, 3), TARGET), 0)
    assert refused.value.why
    assert refused.value.fix


@pytest.mark.parametrize("loss", [lambda output, _: None, lambda output, _: output.sum().item(),
                                  lambda output, _: output.sum().detach()])  # fmt: skip
def test_a_penalty_does_not_hide_a_loss_that_trains_nothing(loss):
    parts = Parts(nn.Linear(3, 2), loss=loss, penalty=lambda made: made.weight.sum())

    with pytest.raises(ConfigError, match="the recipe's loss"):
        parts.compute((torch.ones(4, 3), TARGET), 0)


# --- where gradients are


WIDE = 512  # a weight of 1 MB


def wide(**options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE))
    return model, Parts(model, **options), torch.randn(4, WIDE)


def test_a_large_gradient_is_in_the_memory_that_travels_as_soon_as_it_is_made():
    """And autograd's own is gone before that of the next layer is made."""
    model, parts, inputs = wide()
    expected = plain(copy.deepcopy(model), inputs)
    model.zero_grad()
    nbytes, seen = 4 * WIDE * WIDE, []
    before = large_ones(nbytes)
    model[0].weight.register_hook(lambda gradient: seen.append(large_ones(nbytes) - before))

    parts.towers.begin((inputs, TARGET), 0)
    for number in (0, 2):
        assert model[number].weight.grad.data_ptr() == parts.gradient[f"{number}.weight"].data_ptr()
    assert seen == [1]  # this one
    assert large_ones(nbytes) == before
    parts.towers.collect()
    assert all(torch.equal(parts.gradient[name], gradient) for name, gradient in expected.items())


def test_what_a_hook_puts_in_its_place_travels_and_several_batches_add_up():
    model, parts, inputs = wide()
    first = plain(copy.deepcopy(model), inputs)["0.weight"]
    for number in (0, 1):
        parts.towers.begin((inputs, TARGET), number, OneOf(number, 2))
    assert torch.equal(model[0].weight.grad, first / 2 + first / 2)

    model[0].weight.grad = torch.ones(WIDE, WIDE)
    model[2].weight.grad = None
    assert parts.towers.collect() == ["2.weight"]
    assert parts.gradient["0.weight"].eq(1).all()
    assert parts.gradient["2.weight"].eq(0).all()


def test_gradients_stay_apart_for_who_sums_in_the_memory_that_travels():
    model, parts, inputs = wide(apart=True)
    parts.compute((inputs, TARGET), 0)
    own = model[0].weight.grad.clone()
    parts.gradient["0.weight"].fill_(7.0)

    assert torch.equal(model[0].weight.grad, own)


def test_a_model_that_was_sent_to_another_process_has_what_comes_from_servers():
    """`share_memory` moves tensors; servers fill the memory that they were given."""
    model = nn.Linear(2, 1)
    parts = Parts(model)
    model.share_memory()
    parts.parameter["weight"].copy_(torch.tensor([[3.0, 4.0]]))
    parts.towers.arrived(1)
    assert model.weight.tolist() == [[3.0, 4.0]]
