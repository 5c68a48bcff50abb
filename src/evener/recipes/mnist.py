"""Handwritten digits: the network of the TensorFlow 1 tutorials, 784-H-10 with ReLU, or a convolutional one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from evener.data import digits as digits_data, mnist as mnist_data
from evener.data.dataset import Data
from evener.errors import ConfigError
from evener.recipes.checks import Ranges, check, check_ranges
from evener.recipes.recipe import Recipe
from evener.tensorflow import Adam

Begun = TypeVar("Begun", nn.Linear, nn.Conv2d)

#: name -> (model, learning rate, momentum) -> optimizer. The tutorials' `AdamOptimizer` is not PyTorch's Adam.
OPTIMIZERS: dict[str, Callable[[nn.Module, float, float], Optimizer]] = {
    "sgd": lambda model, lr, _: torch.optim.SGD(model.parameters(), lr=lr),
    "momentum": lambda model, lr, momentum: torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum),
    "adam": lambda model, lr, _: Adam(model.parameters(), lr),
    "torch_adam": lambda model, lr, _: torch.optim.Adam(model.parameters(), lr=lr),
}

#: What each optimizer learns with here also when gradients are stale. Alone, sgd likes 0.5; Adam learns nothing there.
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.02, "adam": 0.001, "torch_adam": 0.001}

RANGES: Ranges = {
    "hidden": (lambda value: value >= 1, "1 or more"),
    "learning_rate": (lambda value: 0 < value < math.inf, "above 0"),
    "decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "l2": (lambda value: 0 <= value < math.inf, "0 or more"),
    "ema_decay": (lambda value: 0 <= value < 1, "at least 0 (no average) and below 1"),
    "momentum": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "dropout": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
}


def mnist(  # noqa: PLR0913  # a recipe's parameters are its options, all by keyword
    *,
    net: str = "mlp",
    hidden: int = 500,
    dropout: float | None = None,
    learning_rate: float | None = None,
    decay: float = 0.99,
    staircase: bool = False,
    l2: float = 1e-4,
    ema_decay: float = 0.99,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    data: str = "auto",
    data_dir: str = "",
    download: bool = False,
    skip_bad_records: bool = False,
) -> Recipe:
    """The recipe `mnist`; refuses options that cannot work with a ConfigError.

    Args:
        net: mlp (one hidden layer), or cnn (two convolutions 5x5 of 32 and 64 channels before it).
        hidden: width H of the hidden layer.
        dropout: cnn: the share of the hidden layer that is left out at each step; default 0.5.
        learning_rate: at step 0; by default 0.1 for sgd, 0.02 for momentum, 0.001 for both Adams.
        decay, staircase: the learning rate is multiplied by `decay` an epoch, smoothly or in one stair at its end.
        l2: adds l2 / 2 times the sum of the squared weights to the loss; biases are free.
        ema_decay: average of the parameters for evaluation; 0 for none.
        optimizer, momentum: sgd, momentum (with this coefficient), adam (TensorFlow's) or torch_adam (PyTorch's).
        data: digits (1,797 images that come with scikit-learn), mnist (70,000, IDX files), or tfrecord: either of them
            as written by `evener data convert`, or other files of its schema. auto: digits; with data_dir or download
            mnist, or tfrecord if there are such files.
        data_dir, download: where the files lie; fetch missing IDX files (without data_dir into the user's cache).
        skip_bad_records: tfrecord: leave damaged records out, and say how many.
    """
    check("optimizer", optimizer, optimizer in OPTIMIZERS, "one of " + ", ".join(OPTIMIZERS))
    check("net", net, net in ("mlp", "cnn"), "one of mlp, cnn")
    check("dropout", dropout, dropout is None or net == "cnn", "an option of net=cnn")
    dropout = 0.5 if dropout is None else dropout
    if learning_rate is None:
        learning_rate = LEARNING_RATES[optimizer]
    check_ranges(
        RANGES, hidden=hidden, learning_rate=learning_rate, decay=decay, l2=l2, ema_decay=ema_decay, momentum=momentum,
        dropout=dropout,
    )  # fmt: skip
    return Recipe(
        model=lambda: network(hidden) if net == "mlp" else convolutional(hidden, dropout),
        data=_source(data, data_dir, download, skip_bad_records),
        optimizer=lambda model: OPTIMIZERS[optimizer](model, learning_rate, momentum),
        penalty=(lambda model: l2_loss(model, l2)) if l2 else None,
        lr_scheduler=lambda made, _, exact: LambdaLR(made, partial(_decayed, decay, staircase, exact)),
        ema_decay=ema_decay or None,
        split_points=("output",),
        name="mnist",
    )


def network(hidden: int) -> nn.Module:
    """Images float32 [B, 784] -> scores [B, 10]. Weights are truncated normal (stddev 0.1), biases zero."""
    first, last = _begun(nn.Linear(784, hidden)), _begun(nn.Linear(hidden, 10))
    return nn.Sequential(OrderedDict(hidden=first, relu=nn.ReLU(), output=last))


def convolutional(hidden: int, dropout: float) -> nn.Module:
    """Images float32 [B, 784] -> scores [B, 10]: the network of TensorFlow's second MNIST tutorial.

    Its weights begin with the deviation sqrt(2 / inputs) (He et al., 2015). The tutorial's 0.1 is five times that for
    the 3,136 inputs of the hidden layer: after 1,200 steps, test accuracy was 0.9861.
    """

    def block(channels: int, made: int) -> nn.Module:
        return nn.Sequential(_begun_he(nn.Conv2d(channels, made, 5, padding=2)), nn.MaxPool2d(2), nn.ReLU())

    return nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (1, 28, 28)),
            features=nn.Sequential(block(1, 32), block(32, 64), nn.Flatten()),
            hidden=_begun_he(nn.Linear(7 * 7 * 64, hidden)),
            relu=nn.ReLU(),
            dropout=nn.Dropout(dropout),
            output=_begun_he(nn.Linear(hidden, 10)),
        )
    )


def _begun_he(layer: Begun) -> Begun:
    return _begun(layer, stddev=math.sqrt(2 / layer.weight[0].numel()))


def _begun(layer: Begun, stddev: float = 0.1) -> Begun:
    # TensorFlow's truncated_normal: what lies beyond two standard deviations is drawn again.
    nn.init.trunc_normal_(layer.weight, std=stddev, a=-2 * stddev, b=2 * stddev)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def l2_loss(model: nn.Module, scale: float) -> Tensor:
    """scale / 2 times the sum of the squares of all weights (parameters of two or more dimensions), a scalar.

    TensorFlow's `l2_regularizer` halves too, so the gradient is scale * weight.
    """
    squares = [_half_square(p, scale) for p in model.parameters() if p.dim() > 1]
    return torch.stack(squares).sum()


class _HalfSquare(torch.autograd.Function):
    """scale / 2 * sum(weight ** 2).

    Written out because the plain form makes temporaries as large as the weight, forward and backward: for 784-500-10
    `scale * weight.pow(2).sum() / 2` costs 710 us forward and backward on one core, this 250 us, and the rest of
    such a step at batch 100 is about 1,500 us.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.scale = scale
        flat = weight.reshape(-1)
        return torch.dot(flat, flat) * (scale / 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return weight * (gradient * ctx.scale), None


def _half_square(weight: Tensor, scale: float) -> Tensor:
    value: Tensor = _HalfSquare.apply(weight, scale)  # type: ignore[no-untyped-call]
    return value


def _decayed(decay: float, staircase: bool, steps_per_epoch: Fraction, step: int) -> float:
    """The factor on the learning rate at a global step: TensorFlow's `exponential_decay`.

    Stairs are counted in whole numbers: in floats, 15,625 steps of 96 out of 50,000 samples are 29 epochs, not 30.
    """
    epochs = step / steps_per_epoch
    return float(decay ** (math.floor(epochs) if staircase else float(epochs)))


def _source(data: str, data_dir: str, download: bool, skip_bad_records: bool) -> Callable[[], Data]:
    if data == "auto":
        data = "digits" if not data_dir and not download else "tfrecord" if _has_tfrecords(data_dir) else "mnist"
    check("data", data, data in ("digits", "mnist", "tfrecord"), "one of auto, digits, mnist, tfrecord")
    check("skip_bad_records", skip_bad_records, not skip_bad_records or data == "tfrecord", "for data=tfrecord only")
    if data == "digits":
        check("data_dir", data_dir, not data_dir, "left out with data=digits, which come with scikit-learn")
        return digits_data.load
    if data == "tfrecord":
        if not data_dir:
            raise ConfigError("data=tfrecord needs the directory of the TFRecord files.", fix="add --data-dir DIR.")
        return lambda: _from_tfrecords(data_dir, skip_bad_records)
    if not data_dir and not download:
        raise ConfigError(
            "data=mnist needs the directory of the IDX files.",
            why="MNIST does not come with evener; the digits do.",
            fix="add --data-dir DIR, or --download to fetch them (11 MB), or use --data digits.",
        )
    return lambda: mnist_data.load(data_dir or mnist_data.default_dir(), download=download)


def _has_tfrecords(data_dir: str) -> bool:
    return bool(data_dir) and any(Path(data_dir).expanduser().glob("train*.tfrecord*"))


def _from_tfrecords(data_dir: str, skip_bad_records: bool) -> Data:
    from evener.data.tfrecord import images

    return images.load(data_dir, pixels=28 * 28, skip_bad_records=skip_bad_records)
