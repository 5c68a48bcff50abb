"""Two modules on two devices, and the log of who is where.

TensorFlow 1 wrote ``with tf.device("/gpu:0"):`` and
``ConfigProto(allow_soft_placement=True, log_device_placement=True)``. Run it on any machine: what has no GPU to go to
goes to the CPU, and one warning says so.

    python examples/device_placement.py
"""

from __future__ import annotations

import torch
from torch import nn

import evener
from evener.devices import place


class Net(nn.Module):
    """Wants its features on the first GPU and its classifier on the second."""

    def __init__(self) -> None:
        super().__init__()
        with evener.device("/gpu:0"):
            self.features = nn.Sequential(nn.Linear(784, 500), nn.ReLU())
        with evener.device("/gpu:1"):
            self.classifier = nn.Linear(500, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))  # what the features give is copied to the classifier's device


def main() -> None:
    model = Net()
    plan = place(model)  # soft placement is on; place(model, soft=False) refuses instead
    if plan.warning:
        print(f"warning: {plan.warning}")
    print(plan.table())
    print(f"output: {list(model(torch.rand(2, 784)).shape)} on {model(torch.rand(2, 784)).device}")

    # The same for training, whatever the recipe's own code asked for:
    result = evener.run(
        "mnist", train_steps=50, quiet=True, place={"hidden": "cuda:0", "output": "cuda:1"},
    )  # fmt: skip
    print(f"trained {result.global_step} steps, loss {result.train_loss:.2f}")


if __name__ == "__main__":
    main()
