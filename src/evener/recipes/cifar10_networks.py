"""The two networks of the recipe `cifar10`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classic(nn.Module):
    """Images float32 [B, 3, 24, 24] -> scores [B, 10]: the network of TensorFlow's CIFAR-10 tutorial.

    Sizes and first values are the tutorial's: truncated normal weights, small positive biases from the second layer on.
    `dense` are the two layers whose weights decay.

    Args:
        low: convolutions and matrix products in bfloat16.
    """

    def __init__(self, low: bool = False) -> None:
        super().__init__()
        self.low = low
        # "SAME" in TensorFlow pads 24 -> 12 -> 6 on the far side only, which is PyTorch's ceil_mode.
        self.features = nn.Sequential(
            _begun(nn.Conv2d(3, 64, 5, padding=2), stddev=0.05, bias=0.0),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Norm(64),
            _begun(nn.Conv2d(64, 64, 5, padding=2), stddev=0.05, bias=0.1),
            nn.ReLU(),
            Norm(64),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.Flatten(),
        )
        self.dense = nn.Sequential(
            _begun(nn.Linear(6 * 6 * 64, 384), stddev=0.04, bias=0.1),
            nn.ReLU(),
            _begun(nn.Linear(384, 192), stddev=0.04, bias=0.1),
            nn.ReLU(),
        )
        self.output = _begun(nn.Linear(192, 10), stddev=1 / 192, bias=0.0)

    def forward(self, images: Tensor) -> Tensor:
        with _precision(images, self.low):
            scores: Tensor = self.output(self.dense(self.features(_channels_last(images))))
        return scores.float()


class Norm(nn.Module):
    """TensorFlow's `lrn`: x / (1 + alpha * sum of the squares of the 9 channels around) ** 0.75, alpha = 0.001 / 9.

    The sums are one product with a band matrix, a convolution of 1x1. PyTorch's own `LocalResponseNorm` gives the same
    values; with it a step of this network at batch 128 takes 1.5 to 2 times as long (317 against 205 ms).
    """

    def __init__(self, channels: int, *, radius: int = 4, alpha: float = 0.001 / 9) -> None:
        super().__init__()
        place = torch.arange(channels)
        band = ((place[:, None] - place).abs() <= radius).float() * alpha
        self.register_buffer("band", band[:, :, None, None], persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        scale = 1 + F.conv2d(values * values, self.band)  # type: ignore[arg-type]
        return values * (scale * scale.sqrt()).rsqrt()


class ResNet(nn.Module):
    """Images float32 [B, 3, 32, 32] -> scores [B, 10]: the nine-layer ResNet of the DAWNBench records, narrower.

    Args:
        width: channels after the first layer; twice, four and eight times as many follow.
        low: convolutions and matrix products in bfloat16.
    """

    def __init__(self, width: int = 32, low: bool = False) -> None:
        super().__init__()
        self.low = low
        self.features = nn.Sequential(
            _layer(3, width),
            _layer(width, 2 * width, stride=2),
            _Residual(2 * width),
            _layer(2 * width, 4 * width, pool=True),
            _layer(4 * width, 8 * width, pool=True),
            _Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.output = nn.Linear(8 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        with _precision(images, self.low):
            scores: Tensor = self.output(self.features(_channels_last(images)))
            # As in the records: without the eighth, the first epoch only mends what the first steps broke.
            scores = scores / 8
        return scores.float()


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_layer(channels, channels), _layer(channels, channels))

    def forward(self, values: Tensor) -> Tensor:
        return values + self.inner(values)  # type: ignore[no-any-return]


def _layer(channels: int, made: int, *, stride: int = 1, pool: bool = False) -> nn.Module:
    convolution = nn.Conv2d(channels, made, 3, stride=stride, padding=1, bias=False)
    pooling = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(convolution, *pooling, nn.BatchNorm2d(made), nn.ReLU(inplace=True))


def _begun(layer: nn.Module, *, stddev: float, bias: float) -> nn.Module:
    """TensorFlow's truncated_normal: what lies beyond two standard deviations is drawn again."""
    assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
    nn.init.trunc_normal_(layer.weight, std=stddev, a=-2 * stddev, b=2 * stddev)
    nn.init.constant_(layer.bias, bias)
    return layer


def _channels_last(images: Tensor) -> Tensor:
    """Channels beside each other, as fast convolutions want them (float32 1.2 times, bfloat16 twice as fast)."""
    return images.contiguous(memory_format=torch.channels_last)


def _precision(images: Tensor, low: bool) -> AbstractContextManager[Any]:
    """No block at all where none is needed: a pipeline cannot trace one."""
    return torch.autocast(images.device.type, torch.bfloat16) if low else nullcontext()
