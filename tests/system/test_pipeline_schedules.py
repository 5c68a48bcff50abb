"""A schedule that validations drive takes its steps on every stage of a pipeline, not on the first alone."""

from __future__ import annotations

import pytest
from running import evener

from evener.state.checkpoint import read_manifest

RECIPE = """
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import evener


def recipe() -> evener.Recipe:
    data = torch.randn(60, 8), torch.zeros(60, dtype=torch.int64)
    return evener.Recipe(
        model=lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), data=lambda: (data, data),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1), split_points=["2"],
        lr_scheduler=lambda optimizer, _: ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=1.0),
    )
"""


@pytest.mark.slow
def test_every_stage_has_the_learning_rate_of_the_first(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    done = evener(tmp_path, "train", "mine.py:recipe", "--pipeline-stages", 2, "--batch-size", 10, "--train-steps", 6,
                  "--eval-every", 1, "--logdir", "run")  # fmt: skip
    assert done.code == 0, done.text

    values = read_manifest(tmp_path / "run" / "checkpoints" / "step-00000006").values
    first, second = (values[stage]["groups"][0]["lr"] for stage in ("0", "1"))
    assert first == second < 0.1
