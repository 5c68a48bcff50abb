"""Moving averages of the parameters, which follow every update."""

from __future__ import annotations

from evener.state.tensors import Slot


class Averages:
    """TensorFlow's rule (SEMANTICS E1, E2, S18): shadow -= (1-d)(shadow - value), d = min(decay, (1+n)/(10+n)).

    They follow with `settle`, at the latest when somebody looks at them: a server sends the new parameters first.
    """

    def __init__(self, parameters: Slot, decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.slot = Slot(parameters.layout, parameters.shard, device=parameters.device)
        for average, value in zip(self.slot.views, parameters.views, strict=True):
            average.copy_(value)
        #: They lack the last update.
        self.owed = False

    def settle(self, step: int) -> None:
        """Let them follow the update that made this step, if they have not."""
        if not self.owed:
            return
        self.owed = False
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, value in zip(self.slot.trained, self._parameters.trained, strict=True):
            average.lerp_(value, 1 - decay)
        for average, value in zip(self.slot.buffers, self._parameters.buffers, strict=True):
            average.copy_(value)
