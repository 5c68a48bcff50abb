"""The two networks: one is TensorFlow's to the last constant, both learn, options are checked."""

import math
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evener.cli import main as cli
from evener.data.batches import Batches
from evener.data.dataset import as_data
from evener.errors import ConfigError
from evener.models import check_model
from evener.recipes.cifar10 import DEVIATIONS, MEANS, cifar10, normalized
from evener.recipes.cifar10_networks import Classic, Norm, ResNet
from evener.recipes.recipe import options_of, resolve
from evener.worker.pipeline.splitting import cut, points_of

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"
with_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real CIFAR-10 records are not in {REAL}")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """40 images of two colours, which are two classes."""
    directory = tmp_path_factory.mktemp("cifar10")
    labels = [number % 2 for number in range(40)]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 100, (40, 3, 1024), dtype=np.uint8)
    images[::2, 0] += 150
    images[1::2, 2] += 150
    content = pickle.dumps({"data": images.reshape(40, 3072), "labels": labels}, 2)
    for name in ("data_batch_1", "test_batch"):
        (directory / name).write_bytes(content)
    return str(directory)


def made(recipe, seed=0):
    torch.manual_seed(seed)
    model = recipe.model()
    check_model(model)
    return model


def test_the_classic_network_has_the_sizes_and_first_values_of_the_tutorial():
    model = made(cifar10(data_dir="/there"))
    conv1, conv2 = (layer for layer in model.features if isinstance(layer, nn.Conv2d))
    local3, local4 = (layer for layer in model.dense if isinstance(layer, nn.Linear))
    layers = [(conv1, (64, 3, 5, 5), 0.05, 0.0), (conv2, (64, 64, 5, 5), 0.05, 0.1), (local3, (384, 2304), 0.04, 0.1),
              (local4, (192, 384), 0.04, 0.1), (model.output, (10, 192), 1 / 192, 0.0)]  # fmt: skip
    for layer, shape, stddev, bias in layers:
        assert layer.weight.shape == shape
        assert layer.weight.abs().max() <= 2 * stddev
        # A normal without its tails beyond two sigma has 0.8796 of its deviation.
        assert layer.weight.std().item() == pytest.approx(0.8796 * stddev, rel=0.05)
        assert layer.bias.unique().tolist() == [pytest.approx(bias)]
    assert sum(p.numel() for p in model.parameters()) == 1_068_298
    assert model(torch.zeros(2, 3, 24, 24)).shape == (2, 10)


def test_the_resnet_adds_what_its_inner_layers_make_and_scores_an_eighth():
    model = made(cifar10(net="resnet", data_dir="/there"), seed=1).eval()
    residual, values = model.features[2], torch.rand(2, 64, 4, 4)
    nn.init.zeros_(residual.inner[-1][-2].weight)  # of the last normalization: the inner layers make nothing
    nn.init.zeros_(model.output.weight)
    nn.init.constant_(model.output.bias, 8.0)

    assert torch.equal(residual(values), values)
    assert torch.equal(model(torch.rand(2, 3, 32, 32)), torch.ones(2, 10))


@pytest.mark.parametrize(("net", "side"), [("classic", 24), ("resnet", 32)])
def test_scores_are_float32_at_either_precision(net, side):
    recipe = cifar10(net=net, precision="bfloat16", data_dir="/there")
    assert made(recipe)(torch.zeros(2, 3, side, side)).dtype == torch.float32


def test_the_resnets_images_have_the_mean_and_deviation_of_their_colours():
    black, white = (normalized(torch.full((1, 3, 2, 2), value, dtype=torch.uint8)) for value in (0, 255))

    torch.testing.assert_close(black[0, :, 0, 0], -torch.tensor(MEANS) / torch.tensor(DEVIATIONS))
    torch.testing.assert_close(white - black, 255 / torch.tensor(DEVIATIONS).view(3, 1, 1).expand(1, 3, 2, 2))


def test_local_response_normalization_is_tensorflows():
    values = torch.randn(2, 64, 2, 2, dtype=torch.float64) * 30
    expected = torch.empty_like(values)
    for channel in range(64):
        around = values[:, max(0, channel - 4) : channel + 5]
        expected[:, channel] = values[:, channel] / (1 + 0.001 / 9 * (around**2).sum(1)) ** 0.75

    torch.testing.assert_close(Norm(64).double()(values), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)(values), expected)


def test_pooling_pads_on_the_far_side_as_same_does_in_tensorflow():
    pool = next(layer for layer in Classic().features if isinstance(layer, nn.MaxPool2d))
    row = torch.arange(24.0).expand(1, 1, 24, 24)
    assert pool(row)[0, 0, 0].tolist() == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 23]


def test_the_first_loss_is_above_4_with_the_weight_decay_of_the_dense_layers_alone(made_up):
    recipe = cifar10(data_dir=made_up)
    model, data = made(recipe), as_data(recipe.data())
    inputs, target = Batches(data.train, batch_size=20, seed=0).batch(0)
    penalty = recipe.penalty(model)
    weights = [layer.weight for layer in model.dense if isinstance(layer, nn.Linear)]

    assert penalty.item() == pytest.approx(0.004 * sum((w**2).sum().item() for w in weights) / 2, rel=1e-4)
    assert 4.5 < (recipe.loss(model(inputs), target) + penalty).item() < 4.9
    penalty.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["dense.0.weight", "dense.2.weight"]


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"precision": "bfloat16"}, marks=pytest.mark.slow), {"net": "resnet", "width": 4}]
)
def test_a_few_steps_tell_two_colours_apart(made_up, options):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = cifar10(data_dir=made_up, **options)
    model, data = made(recipe), as_data(recipe.data())
    optimizer = recipe.optimizer(model)
    batches = Batches(data.train, batch_size=20, seed=0)
    schedule = recipe.lr_scheduler(optimizer, 0, Fraction(batches.steps_per_epoch))
    for lease in range(15):
        inputs, target = batches.batch(lease)
        optimizer.zero_grad()
        recipe.loss(model(inputs), target).backward()
        optimizer.step()
        schedule.step()
    inputs, target = data.validation.batch(torch.arange(40))
    accuracy = recipe.metrics["accuracy"](model(inputs), target)  # in training mode: BatchNorm has hardly begun
    torch.set_num_threads(threads)
    assert accuracy > 0.9


def rates(recipe, epochs, steps_per_epoch):
    optimizer = recipe.optimizer(nn.Linear(1, 1))
    schedule = recipe.lr_scheduler(optimizer, 0, Fraction(steps_per_epoch))
    found = []
    for _ in range(math.ceil(epochs * steps_per_epoch)):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_classic_learning_rate_falls_in_stairs():
    found = rates(cifar10(data_dir="/there", decay=0.5, decay_epochs=2), 6, 2.5)
    assert found == pytest.approx([0.1] * 5 + [0.05] * 5 + [0.025] * 5)
    assert options_of("cifar10")["net"] == "classic"


def test_the_resnets_learning_rate_is_a_triangle_that_never_ends_at_zero():
    found = rates(cifar10(data_dir="/there", net="resnet", learning_rate=1, anneal_epochs=10), 12, 2)
    assert found[:5] == pytest.approx([0.01, 0.25, 0.5, 0.75, 1.0])
    assert found[12] == pytest.approx(0.5)
    assert found[20:] == [0.01] * 4


def test_the_resnet_decays_weights_and_nothing_else():
    recipe = cifar10(data_dir="/there", net="resnet", weight_decay=0.5)
    decaying, others = recipe.optimizer(ResNet(4)).param_groups
    assert {p.dim() for p in decaying["params"]} == {2, 4}
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.5, 0)
    assert decaying["nesterov"]
    assert (recipe.penalty, recipe.ema_decay, cifar10(data_dir="/there").ema_decay) == (None, None, 0.9999)


@pytest.mark.parametrize(("net", "side"), [("classic", 24), ("resnet", 32)])
def test_distortions_depend_on_the_place_in_the_run_and_can_be_switched_off(made_up, net, side):
    train = as_data(cifar10(net=net, data_dir=made_up).data()).train
    small, large = Batches(train, batch_size=8, seed=1), Batches(train, batch_size=24, seed=1)

    parts = torch.cat([small.batch(lease)[0] for lease in range(3)])
    assert parts.shape == (24, 3, side, side)
    torch.testing.assert_close(parts, large.batch(0)[0])
    # the next epoch shows the same images otherwise
    first, second = (small.batch(lease) for lease in (0, 5))
    assert not torch.equal(first[0], second[0])

    plain = as_data(cifar10(net=net, data_dir=made_up, distort=False).data()).train
    indices = torch.from_numpy(small.order.indices(0, 8))
    assert torch.equal(Batches(plain, batch_size=8, seed=1).batch(0)[0], train.batch(indices)[0])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("net", ["resnet50"]), ("precision", ["float16"]), ("learning_rate", [0, "inf"]), ("decay", [0, 1.1]),
        ("decay_epochs", [0]), ("weight_decay", [-1]), ("ema_decay", [1]), ("width", [8]), ("momentum", [0.9]),
        ("label_smoothing", [0.1]), ("anneal_epochs", [3]),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_by_name_and_value(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"option {name}=") as caught:
            resolve("cifar10", {name: value, "data_dir": "/there"})
        assert caught.value.why
        assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 0), ("momentum", 1), ("label_smoothing", 1), ("anneal_epochs", 0), ("decay", 0.5), ("decay_epochs", 9)],
)
def test_options_of_the_resnet_too(name, value):
    with pytest.raises(ConfigError, match=f"option {name}="):
        resolve("cifar10", {"net": "resnet", name: value, "data_dir": "/there"})


def test_cifar10_needs_a_directory_or_a_download(monkeypatch):
    from evener.data import cifar10 as files

    with pytest.raises(ConfigError, match="needs the directory") as caught:
        cifar10()
    assert "--data-dir" in caught.value.fix
    asked = []
    monkeypatch.setattr(files, "load", lambda where, download, **_: asked.append((str(where), download)))
    cifar10(download=True).data()
    assert asked == [(str(files.default_dir()), True)]


@pytest.mark.parametrize(("net", "side"), [("classic", 24), ("resnet", 32)])
def test_both_networks_can_be_cut_into_four_stages_that_compute_the_same(net, side):
    recipe = cifar10(net=net, data_dir="/there")
    model = made(recipe).eval()
    inputs = torch.randn(4, 3, side, side)
    with torch.no_grad():
        whole = model(inputs)
        cut_ = cut(model, points_of(recipe, model, 4), inputs)
        staged = inputs
        for stage in range(4):
            staged = cut_.pipe.get_stage_module(stage)(staged)

    assert set(cut_.homes.values()) == {0, 1, 2, 3}
    torch.testing.assert_close(staged, whole)


def test_in_bfloat16_they_cannot_be_cut_and_that_is_said():
    recipe = cifar10(precision="bfloat16", data_dir="/there")
    model = made(recipe)
    with pytest.raises(ConfigError, match="the model cannot be cut into stages"):
        cut(model, points_of(recipe, model, 2), torch.randn(4, 3, 24, 24))


def test_converted_files_are_found_in_their_directory_and_give_the_same_batches(made_up, tmp_path, capsys):
    """The two commands of docs/data.md, up to the batches."""
    words = ["data", "convert", "cifar10", "--to", "tfrecord", str(tmp_path / "images"), "--data-dir", made_up]
    assert cli.main(words) == 0
    assert "in all 80 records" in capsys.readouterr().out
    ways = [Batches(cifar10(data_dir=str(place)).data().train, batch_size=8, seed=3) for place in
            (made_up, tmp_path / "images")]  # fmt: skip
    for lease in range(6):
        for one, other in zip(*(way.batch(lease) for way in ways), strict=True):
            assert torch.equal(one, other)
