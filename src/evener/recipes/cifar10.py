"""CIFAR-10: the network of the TensorFlow 1 tutorials with its distorted images, and a small ResNet of today."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from evener.data import cifar10 as files, distort
from evener.data.dataset import Data
from evener.errors import ConfigError
from evener.recipes import cifar10_networks as networks
from evener.recipes.checks import Ranges, check, check_ranges
from evener.recipes.mnist import l2_loss
from evener.recipes.recipe import Recipe

#: The options of each network, and their defaults.
DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "classic": {
        "learning_rate": 0.1, "decay": 0.1, "decay_epochs": 350.0, "weight_decay": 0.004, "ema_decay": 0.9999,
    },
    "resnet": {
        "learning_rate": 0.2, "anneal_epochs": 10.0, "weight_decay": 5e-4, "ema_decay": 0.0, "momentum": 0.9,
        "label_smoothing": 0.1, "width": 32,
    },
}  # fmt: skip

RANGES: Ranges = {
    "learning_rate": (lambda value: 0 < value < math.inf, "above 0"),
    "decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "decay_epochs": (lambda value: 0 < value < math.inf, "above 0"),
    "anneal_epochs": (lambda value: 0 < value < math.inf, "above 0"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "0 or more"),
    "ema_decay": (lambda value: 0 <= value < 1, "at least 0 (no average) and below 1"),
    "momentum": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "width": (lambda value: 1 <= value <= 1024, "1 to 1024"),
}

PRECISIONS = ("float32", "bfloat16")

#: Means and standard deviations of the red, green and blue values, 0..255, of the 50,000 images.
MEANS, DEVIATIONS = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


def cifar10(  # noqa: PLR0913  # a recipe's parameters are its options, all by keyword
    *,
    net: str = "classic",
    learning_rate: float | None = None,
    decay: float | None = None,
    decay_epochs: float | None = None,
    anneal_epochs: float | None = None,
    weight_decay: float | None = None,
    ema_decay: float | None = None,
    momentum: float | None = None,
    label_smoothing: float | None = None,
    width: int | None = None,
    precision: str = "float32",
    distort: bool = True,
    data_dir: str = "",
    download: bool = False,
) -> Recipe:
    """The recipe `cifar10`; refuses options that cannot work with a ConfigError. The seeds' batch size is 128.

    Args:
        net: classic (two convolutions, two dense layers, on 24x24), or resnet (eight convolutions, on 32x32).
        learning_rate: classic: at step 0, default 0.1; resnet: at its highest, default 0.2.
        decay, decay_epochs: classic: multiplied by `decay` (0.1) every `decay_epochs` (350), in stairs.
        anneal_epochs: resnet: rises for a fifth of these epochs (10), then falls to a hundredth at their end; train as
            many with --epochs.
        weight_decay: classic: adds weight_decay / 2 times the squares of the dense layers' weights to the loss, default
            0.004; resnet: of all weights, in the optimizer, default 0.0005.
        ema_decay: average of the parameters for evaluation, 0 for none; default classic 0.9999, resnet none.
        momentum, label_smoothing, width: resnet: Nesterov's momentum (0.9), of the loss (0.1), first channels (32).
        precision: float32, or bfloat16 in convolutions and matrix products: two to three times as fast on processors
            with AMX, slow on those without; parameters stay float32.
        distort: train on images distorted at random; else on what is evaluated.
        data_dir, download: where archive or files lie; fetch the archive (without data_dir into the user's cache).
    """
    check("net", net, net in DEFAULTS, "one of " + ", ".join(DEFAULTS))
    check("precision", precision, precision in PRECISIONS, "one of " + ", ".join(PRECISIONS))
    chosen = _chosen(
        net, learning_rate=learning_rate, decay=decay, decay_epochs=decay_epochs, anneal_epochs=anneal_epochs,
        weight_decay=weight_decay, ema_decay=ema_decay, momentum=momentum, label_smoothing=label_smoothing, width=width,
    )  # fmt: skip
    parts = _classic if net == "classic" else _resnet
    return Recipe(
        **parts(chosen, precision == "bfloat16"),
        data=_source(net, distort, data_dir, download),
        ema_decay=chosen["ema_decay"] or None,
        name="cifar10",
    )


def _chosen(net: str, **given: float | None) -> dict[str, float]:
    """The options of this network, with its defaults; one of the other network is a mistake."""
    chosen = dict(DEFAULTS[net])
    for name, value in given.items():
        if value is not None:
            other = next((entry for entry in DEFAULTS if name in DEFAULTS[entry]), "")
            check(name, value, name in chosen, f"an option of net={other}, and this is net={net}")
            chosen[name] = value
    check_ranges(RANGES, **chosen)
    return chosen


def _classic(chosen: Mapping[str, float], low: bool) -> dict[str, Any]:
    decay = chosen["weight_decay"]
    factor = partial(stairs, chosen["decay"], chosen["decay_epochs"])
    return {
        "model": lambda: networks.Classic(low),
        "split_points": ("features.4", "dense", "output"),
        "optimizer": lambda model: SGD(model.parameters(), lr=chosen["learning_rate"]),
        "penalty": (lambda model: l2_loss(model.dense, decay)) if decay else None,
        "lr_scheduler": partial(_scheduled, factor),
    }


def _resnet(chosen: Mapping[str, float], low: bool) -> dict[str, Any]:
    return {
        "model": lambda: networks.ResNet(int(chosen["width"]), low),
        "split_points": ("features.2", "features.4", "features.5"),
        "optimizer": partial(_nesterov, chosen),
        "loss": partial(F.cross_entropy, label_smoothing=chosen["label_smoothing"]),
        "lr_scheduler": partial(_scheduled, partial(triangle, chosen["anneal_epochs"])),
    }


def _nesterov(chosen: Mapping[str, float], model: nn.Module) -> Optimizer:
    """Weight decay is for weights alone: scales and shifts of the normalization do not overfit."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": chosen["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    momentum = chosen["momentum"]
    return SGD(groups, lr=chosen["learning_rate"], momentum=momentum, nesterov=momentum > 0)


def _scheduled(factor: Callable[[Fraction], float], optimizer: Optimizer, _: int, exact: Fraction) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: factor(step / exact))


def stairs(decay: float, decay_epochs: float, epochs: Fraction | float) -> float:
    """The factor on the learning rate after some epochs: TensorFlow's `exponential_decay` with stairs."""
    return float(decay ** math.floor(Fraction(epochs) / Fraction(decay_epochs)))


def triangle(anneal_epochs: float, epochs: Fraction | float) -> float:
    """The factor on the learning rate: up to 1 at a fifth of the way, down to a hundredth at its end, and there on."""
    done = float(epochs) / anneal_epochs
    return max(0.01, min(done / 0.2, (1 - done) / 0.8))


def normalized(images: Tensor) -> Tensor:
    """Images uint8 [B, 3, H, W] -> float32 of about mean 0 and deviation 1 in each colour."""
    means, deviations = (torch.tensor(values).view(3, 1, 1) for values in (MEANS, DEVIATIONS))
    return images.float().sub_(means).div_(deviations)


def _source(net: str, distorting: bool, data_dir: str, download: bool) -> Callable[[], Data]:
    if not data_dir and not download:
        raise ConfigError(
            "cifar10 needs the directory of its archive or files.",
            why="CIFAR-10 does not come with evener.",
            fix="add --data-dir DIR, or --download to fetch the archive (170 MB).",
        )
    transform: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor, Tensor], Tensor]
    if net == "classic":
        transform, augment, numbers = distort.central, distort.distorted, distort.DISTORTED
    else:
        transform, augment, numbers = normalized, _shifted, distort.SHIFTED
    return lambda: files.load(
        data_dir or files.default_dir(),
        download=download,
        transform=transform,
        augment=augment if distorting else None,
        numbers=numbers,
    )


def _shifted(images: Tensor, uniform: Tensor) -> Tensor:
    return normalized(distort.shifted(images, uniform))
