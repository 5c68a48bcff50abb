"""The shipped network: its numbers are TensorFlow's, and it learns."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

import evener.tensorflow
from evener.data.batches import Batches, Samples
from evener.data.dataset import as_data
from evener.errors import ConfigError, InputError
from evener.models import check_model
from evener.recipes.mnist import l2_loss, mnist, network
from evener.recipes.recipe import resolve


@pytest.fixture(autouse=True)
def one_thread():
    """These matrices are small: more threads only wait for each other, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameters_after(recipe, steps, seed=0):
    """Train with nothing but PyTorch; returns the model and its data."""
    torch.manual_seed(seed)
    model, data = recipe.model(), as_data(recipe.data())
    check_model(model)
    optimizer = recipe.optimizer(model)
    batches = Batches(data.train, batch_size=100, seed=seed)
    schedule = recipe.lr_scheduler(optimizer, 0, Fraction(batches.steps_per_epoch))
    for lease in range(steps):
        inputs, target = batches.batch(lease)
        optimizer.zero_grad()
        (recipe.loss(model(inputs), target) + recipe.penalty(model)).backward()
        optimizer.step()
        schedule.step()
    return model, data


@torch.no_grad()
def validation_accuracy(recipe, model, data):
    right = sum(recipe.metrics["accuracy"](model(x), y) * len(y) for x, y in Samples(data.validation, 1000))
    return float(right) / len(data.validation)


@pytest.mark.parametrize(
    "options",
    [{"hidden": 100}, {"optimizer": "momentum", "learning_rate": 0.05}, {"optimizer": "adam", "learning_rate": 0.001}],
)
def test_300_steps_learn_the_digits(options):
    recipe = mnist(**options)
    model, data = parameters_after(recipe, 300)
    assert validation_accuracy(recipe, model, data) > 0.9


def test_the_network():
    torch.manual_seed(0)
    model = network(500)

    assert model(torch.zeros(3, 784)).tolist() == [[0.0] * 10] * 3  # biases are zero
    assert {name: list(p.shape) for name, p in model.named_parameters()} == {
        "hidden.weight": [500, 784],
        "hidden.bias": [500],
        "output.weight": [10, 500],
        "output.bias": [10],
    }
    for weight in (model.hidden.weight, model.output.weight):
        assert weight.abs().max() <= 0.2
        # A normal of stddev 0.1 without its tails beyond two sigma has stddev 0.08796.
        assert weight.std().item() == pytest.approx(0.08796, rel=0.03)


def test_the_first_parameters_follow_from_the_seed():
    recipe = mnist(hidden=20)

    def made(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(recipe.model().parameters())

    assert torch.equal(made(3), made(3))
    assert not torch.equal(made(3), made(4))


def test_the_l2_loss_and_its_gradient():
    torch.manual_seed(0)
    model = network(20)
    loss = 3 * l2_loss(model, 0.01)
    loss.backward()

    weights = [model.hidden.weight, model.output.weight]
    assert loss.item() == pytest.approx(3 * 0.01 * sum((w**2).sum().item() for w in weights) / 2, rel=1e-5)
    for weight in weights:
        torch.testing.assert_close(weight.grad, 3 * 0.01 * weight.detach())
    assert model.hidden.bias.grad is None


def test_the_l2_gradient_numerically():
    class Double(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = nn.Parameter(weight)

    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    module = Double(weight)
    module._parameters["weight"] = weight
    assert torch.autograd.gradcheck(lambda w: l2_loss(module, 0.3), (weight,))


def rates(steps_per_epoch, count, **options):
    recipe = mnist(learning_rate=0.5, decay=0.9, **options)
    optimizer = recipe.optimizer(nn.Linear(1, 1))
    schedule = recipe.lr_scheduler(optimizer, 0, Fraction(steps_per_epoch))
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_learning_rate_decays_smoothly_by_true_division():
    assert rates(2.5, 6) == pytest.approx([0.5 * 0.9 ** (step / 2.5) for step in range(6)])


def test_the_learning_rate_decays_in_stairs():
    assert rates(2.5, 6, staircase=True) == pytest.approx([0.5 * 0.9 ** math.floor(step / 2.5) for step in range(6)])


@pytest.mark.parametrize(
    ("name", "kind", "momentum"),
    [
        ("sgd", torch.optim.SGD, 0),
        ("momentum", torch.optim.SGD, 0.8),
        ("adam", evener.tensorflow.Adam, None),  # the tutorials' command lines say adam
        ("torch_adam", torch.optim.Adam, None),
    ],
)
def test_the_optimizers(name, kind, momentum):
    made = mnist(optimizer=name, momentum=0.8, learning_rate=0.2).optimizer(nn.Linear(1, 1))
    assert type(made) is kind
    assert made.param_groups[0]["lr"] == 0.2
    assert made.param_groups[0].get("momentum") == momentum


def test_penalty_and_average_can_be_switched_off():
    recipe = mnist(l2=0, ema_decay=0)
    assert recipe.penalty is None
    assert recipe.ema_decay is None
    assert mnist().ema_decay == 0.99


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("hidden", [0, -1]),
        ("learning_rate", [0, "inf", "nan"]),
        ("decay", [0, 1.1]),
        ("l2", [-1]),
        ("ema_decay", [1]),
        ("momentum", [1]),
        ("optimizer", ["adamw"]),
        ("data", ["cifar"]),
    ],
)
def test_options_that_cannot_work_are_refused_by_name_and_value(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"option {name}=") as caught:
            resolve("mnist", {name: value})
        assert caught.value.why
        assert caught.value.fix


def test_mnist_needs_a_directory_or_a_download():
    with pytest.raises(ConfigError, match="needs the directory") as caught:
        mnist(data="mnist")
    assert "--data-dir" in caught.value.fix


def test_mnist_is_read_from_its_directory_or_fetched_into_the_cache(monkeypatch, tmp_path):
    from evener.data import mnist as files

    asked = []
    monkeypatch.setattr(files, "load", lambda where, download: asked.append((str(where), download)))
    mnist(data="mnist", data_dir="/there").data()
    mnist(data="mnist", download=True).data()
    mnist(data_dir="/there").data()
    mnist(download=True).data()
    assert asked == [("/there", False), (str(files.default_dir()), True)] * 2


def test_a_directory_is_never_passed_over(tmp_path):
    """Whoever names one does not want the digits."""
    (tmp_path / "train-00000-of-00001.tfrecord").touch()
    with pytest.raises(InputError, match="the train set is empty"):
        mnist(data_dir=str(tmp_path)).data()
    with pytest.raises(ConfigError, match=r"data_dir=.* cannot be used"):
        mnist(data="digits", data_dir=str(tmp_path))


def test_the_convolutional_network():
    torch.manual_seed(0)
    model = mnist(net="cnn").model()
    check_model(model)

    assert {name: list(p.shape) for name, p in model.named_parameters() if p.dim() > 1} == {
        "features.0.0.weight": [32, 1, 5, 5],
        "features.1.0.weight": [64, 32, 5, 5],
        "hidden.weight": [500, 3136],
        "output.weight": [10, 500],
    }
    assert model.dropout.p == 0.5
    assert mnist(net="cnn", dropout=0).model().dropout.p == 0
    assert model(torch.zeros(3, 784)).shape == (3, 10)
    assert model.hidden.weight.std().item() == pytest.approx(0.8796 * math.sqrt(2 / 3136), rel=0.02)


@pytest.mark.slow
def test_40_steps_of_the_convolutional_network_learn_the_digits():
    recipe = mnist(net="cnn", optimizer="momentum", hidden=64)
    model, data = parameters_after(recipe, 40)
    model.eval()
    assert validation_accuracy(recipe, model, data) > 0.7


@pytest.mark.parametrize("options", [{"net": "rnn"}, {"net": "cnn", "dropout": 1}, {"dropout": 0.5}])
def test_options_of_the_convolutional_network_are_checked(options):
    with pytest.raises(ConfigError, match="option "):
        mnist(**options)
