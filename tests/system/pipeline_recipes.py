"""Recipes that a pipeline can cut: a chain, and a network with a connection that jumps over a stage's module."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

import evener
from evener.session.hooks import StepResult
from evener.session.session import Session


class Residual(nn.Module):
    """Images [B, 64] -> scores [B, 3]; what the features give is used before and after the cut at `body`.

    They lie channels last in memory, as convolutions like them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.features(images.view(-1, 1, 8, 8)).contiguous(memory_format=torch.channels_last)
        return self.classifier((seen + torch.relu(self.body(seen))).flatten(1))


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


class Record(evener.Hook):
    """Writes every step's loss to a file, exactly; at `gate_step` it waits for the file `gate`."""

    def __init__(self, losses: str, gate: str, gate_step: int) -> None:
        self.losses, self.gate, self.gate_step = Path(losses), Path(gate), gate_step

    def before_step(self, session: Session) -> None:
        if session.turn.version == self.gate_step:
            while not self.gate.exists():
                time.sleep(0.005)

    def after_step(self, session: Session, result: StepResult) -> None:
        with self.losses.open("a") as file:
            file.write(f"{result.loss!r}\n")


class Normalized(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.append(nn.Linear(16, 3))


NETS = {"chain": chain, "residual": Residual, "normalized": Normalized}


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    inputs = torch.randn(330, 64, generator=torch.Generator().manual_seed(1))
    target = (inputs[:, :3] + inputs[:, 8:11]).argmax(1)
    return (inputs[:240], target[:240]), (inputs[240:], target[240:])


def l2(model: nn.Module) -> Tensor:
    return 1e-3 * torch.stack([p.pow(2).sum() for p in model.parameters() if p.dim() > 1]).sum()


class TwoInputs:
    """A data set whose inputs are not one tensor."""

    def __len__(self) -> int:
        return 240

    def batch(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        (inputs, target), _ = data()
        return {"left": inputs[indices], "right": inputs[indices]}, target[indices]


def whole_norm(model: nn.Module) -> Tensor:
    """No stage could say its part of it."""
    return l2(model).sqrt()


def recipe(
    losses: str, net: str = "chain", flaw: str = "", gate: str = "", gate_step: int = -1, fail: bool = False
) -> evener.Recipe:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        if fail and torch.is_grad_enabled():  # in training, not when the run looks at its metrics
            raise ValueError("this loss fails")
        return nn.functional.cross_entropy(output, target)

    return evener.Recipe(
        model=NETS[net],
        data=(lambda: (TwoInputs(), TwoInputs())) if flaw == "inputs" else data,
        loss=loss,
        penalty=whole_norm if flaw == "penalty" else l2,
        ema_decay=0.9,
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
        lr_scheduler=lambda made, _: torch.optim.lr_scheduler.ExponentialLR(made, 0.99),
        split_points=["body"] if net == "residual" else ["2", "4"],
        hooks=lambda: [Record(losses, gate, gate_step)],
    )
