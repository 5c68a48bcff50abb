"""What a checkpoint keeps of a state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from evener.state.values import unpack


@dataclass(frozen=True, slots=True)
class Contents:
    """A state at one step, as named tensors and plain values: what a checkpoint keeps.

    Names are those of the model; a part of a split tensor carries its range, ``fc.weight[0:1024]``.
    """

    step: int
    parameters: dict[str, Tensor]
    averages: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "fc.weight/exp_avg"
    values: dict[str, Any] = field(default_factory=dict)  # plain: groups, schedule, optimizer numbers
    buffers: frozenset[str] = frozenset()  # of the parameters, those that nobody trains: a mask may be infinite

    def by_owner(self) -> dict[str, dict[str, Any]]:
        """What the optimizer and rules keep of each parameter, by its name."""
        numbers = {name: unpack(value) for name, value in self.values.get("numbers", {}).items()}
        states: dict[str, dict[str, Any]] = {}
        for name, value in {**self.optimizer, **numbers}.items():
            owner, _, key = name.rpartition("/")
            states.setdefault(owner, {})[key] = value
        return states
