"""A model of your own, with its own data, loss, metric and hook: how far a disease goes in a year, by regression.

The data are 442 patients with 10 measurements each (they come with scikit-learn). The same file trains in one process,
with parameter servers, and in any mode:

    python examples/own_model.py
    evener train examples/own_model.py:recipe --ps 1 --workers 2 --train-steps 600 --set hidden=32
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import evener
from evener.session.hooks import StepResult
from evener.session.session import Session


class Net(nn.Module):
    """Measurements [B, 10] -> progression [B], in standard deviations from the mean."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, hidden), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(hidden, 1)

    def forward(self, measurements: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(measurements))
        return out.squeeze(1)


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(training, validation), each (inputs, targets): tensors, or anything with a length and items."""
    measurements, progression = load_diabetes(return_X_y=True)
    inputs = torch.tensor(measurements, dtype=torch.float32)
    inputs = inputs / inputs.std(0)
    targets = torch.tensor(progression, dtype=torch.float32)
    targets = (targets - targets.mean()) / targets.std()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))  # the same in every task
    train, held_out = order[:342], order[342:]
    return (inputs[train], targets[train]), (inputs[held_out], targets[held_out])


def mean_absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """A metric: (output, target) -> the mean over the batch."""
    return (output - target).abs().mean()


class StopWhenSteady(evener.Hook):
    """End the run when the mean loss of the last `window` steps is no longer below that of the `window` before."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.losses: list[float] = []

    def after_step(self, session: Session, result: StepResult) -> None:
        self.losses.append(result.loss)
        if len(self.losses) % self.window or len(self.losses) < 2 * self.window:
            return
        before, now = sum(self.losses[-2 * self.window : -self.window]), sum(self.losses[-self.window :])
        if now >= before:
            session.stop(f"the loss is steady at {now / self.window:.3f}")


def recipe(hidden: int = 64, learning_rate: float = 0.003, window: int = 100) -> evener.Recipe:
    """Its parameters are the options: --set hidden=32. Its parts are functions: every task makes its own."""
    return evener.Recipe(
        model=lambda: Net(hidden),
        data=data,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01),
        loss=F.smooth_l1_loss,
        metrics={"mean_absolute_error": mean_absolute_error},
        hooks=lambda: [StopWhenSteady(window)],
        name="diabetes",
    )


def main() -> None:
    result = evener.run(recipe, train_steps=5000, batch_size=32, log_every=200)
    # the same by two workers and a parameter server: evener.run(recipe, ps=1, workers=2, train_steps=5000, ...)
    print(f"ended at step {result.global_step}: {result.reason}")
    print(
        f"mean absolute error on the 100 held-out patients: {result.validation['validation_mean_absolute_error']:.2f}"
    )


if __name__ == "__main__":  # with ps tasks, every task imports this file
    main()
