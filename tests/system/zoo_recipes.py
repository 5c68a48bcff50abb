"""Models that people train and that clusters get wrong: as recipes for real commands."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import evener

sys.path.append(str(Path(__file__).parents[1] / "zoo"))
from models import Recurrent, Teacher, Tied


class TiedAndUnused(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(8, 3)


def two_norms() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )


MODELS = {"norms": two_norms, "lstm": lambda: Recurrent(nn.LSTM), "tied": TiedAndUnused, "teacher": Teacher}


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs, target = torch.randn(60, 8, generator=generator), torch.randint(0, 3, (60,), generator=generator)
    return (inputs[:50], target[:50]), (inputs[50:], target[50:])


def recipe(kind: str) -> evener.Recipe:
    return evener.Recipe(
        model=MODELS[kind], data=data, name=kind, changing=["teacher"], ema_decay=0.9,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
        lr_scheduler=lambda made, _: torch.optim.lr_scheduler.ExponentialLR(made, 0.9),
    )  # fmt: skip
