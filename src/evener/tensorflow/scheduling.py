"""A function of the global step as a learning-rate scheduler of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class ScheduledLR(LRScheduler):
    """The learning rate of all parameter groups is function(steps), also after a checkpoint was loaded.

    TensorFlow evaluates its schedules so: from the global step before it is increased, and anew in each step. So
    `lr` of the optimizer is not used, and a run that is continued with another function follows that one.

    Args:
        function: global step -> learning rate.
    """

    def __init__(self, optimizer: Optimizer, function: Callable[[int], float], last_epoch: int = -1) -> None:
        self._function = function
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        return [self._function(self.last_epoch)] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "_function"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = self.get_lr()


def scheduled(function: Callable[[int], float]) -> Callable[[Optimizer, float], LRScheduler]:
    """A recipe's `lr_scheduler` of a function of the global step.

        lr_scheduler=scheduled(lambda step: exponential_decay(0.01, step, 600, 0.99, staircase=True))

    A function that needs to know how many steps an epoch has: `lambda optimizer, steps_per_epoch: ScheduledLR(...)`.
    """
    return lambda optimizer, steps_per_epoch: ScheduledLR(optimizer, function)
