"""The work, for all peers that run on PyTorch: models, batches and optimizer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from job import BATCH, CLASSES, PIXELS, Job
from torch import Tensor, nn

WORDS, LENGTH = 1000, 16


def start() -> None:
    """One thread a process, and the same first parameters in all."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def model(job: Job) -> nn.Module:
    if job.model == "transformer":
        return Transformer()
    layers = nn.Linear(PIXELS, job.hidden), nn.Linear(job.hidden, CLASSES)
    for layer, stddev in zip(layers, (0.1, job.stddev), strict=True):
        nn.init.trunc_normal_(layer.weight, std=stddev, a=-2 * stddev, b=2 * stddev)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


class Transformer(nn.Module):
    """Two layers of width 64 over 16 words: 130,000 parameters. Words [B, 16] -> scores [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.embed(words)).mean(1))
        return scores


def samples(job: Job) -> tuple[Tensor, Tensor]:
    """All inputs and targets. For the transformer: sentences in which nine words of ten are of one class."""
    if job.model == "mlp":
        with np.load(job.data) as data:
            return torch.from_numpy(data["inputs"]), torch.from_numpy(data["target"])
    chance = torch.Generator().manual_seed(1)
    target = torch.randint(CLASSES, (2000,), generator=chance)
    words = torch.randint(WORDS, (2000, LENGTH), generator=chance)
    of_class = target[:, None] * (WORDS // CLASSES) + words % (WORDS // CLASSES)
    return torch.where(torch.rand(2000, LENGTH, generator=chance) < 0.9, of_class, words), target


def batches(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end, other ones for each worker: each pass in an order of its own."""
    inputs, target = samples(job)
    chance = torch.Generator().manual_seed(job.index)
    while True:
        for rows in torch.randperm(len(inputs), generator=chance).split(BATCH)[:-1]:
            yield inputs[rows], target[rows]


def optimizer(job: Job, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=job.learning_rate)


def gradient(of: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """Leaves it in each parameter's `grad`, and returns the loss."""
    of.zero_grad(set_to_none=True)
    loss = F.cross_entropy(of(batch[0]), batch[1])
    loss.backward()
    return loss.item()
