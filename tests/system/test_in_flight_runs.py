"""Two gradients in flight, in real processes: what travels is never written over by the next one."""

from __future__ import annotations

import pytest
import safetensors.torch
from running import evener

pytestmark = pytest.mark.slow

STEPS = 300
#: The gradient of a batch is its one number in each of 4 MB of parameters, whatever these are. All sums are exact.
EQUAL = """
import torch
from torch import nn

import evener


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1 << 20))
        self.last = nn.Parameter(torch.zeros(10))

    def forward(self, inputs):
        return (self.first.sum() + self.last.sum()) * inputs.mean()


numbers = torch.arange(1.0, 51.0)
recipe = evener.Recipe(
    model=Weights, data=lambda: ((numbers, numbers), (numbers[:5], numbers[:5])), loss=lambda output, target: output,
    optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0), metrics={},
)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_each_gradient_is_applied_as_it_was_computed(workers, tmp_path):
    (tmp_path / "equal.py").write_text(EQUAL)
    words = ["train", "equal.py:recipe", "--ps", 1, "--workers", workers, "--in-flight", 2, "--batch-size", 1]
    done = evener(tmp_path, *words, "--train-steps", STEPS, "--logdir", "run")
    assert done.code == 0, done.text

    (file,) = tmp_path.glob(f"run/checkpoints/step-*{STEPS}/parameters-*.safetensors")
    weights = safetensors.torch.load_file(file)
    passes, expected = STEPS // 50, -sum(range(1, 51))
    for name, values in weights.items():
        assert values.unique().tolist() == [passes * expected], name
