"""What both programs train: a small network, and 8 x 8 pictures of bars at ten slants, with noise."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.data import TensorDataset


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def digits(count: int = 4000, seed: int = 0) -> TensorDataset:
    """`count` pictures of 64 float32 pixels, and their labels 0-9."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    angles = (labels * math.pi / 10)[:, None, None]
    bars = torch.exp(-8 * (rows * torch.cos(angles) - columns * torch.sin(angles)) ** 2)
    return TensorDataset((bars + 0.5 * torch.randn(bars.shape, generator=generator)).flatten(1), labels)


def accuracy(model: nn.Module) -> float:
    inputs, labels = digits(1000, seed=1).tensors
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).float().mean())
