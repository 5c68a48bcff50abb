"""Learning rate schedulers of a program, by whose clock they go.

Steps that a scheduler takes within a pass over the loader follow the global step: where other workers have made updates
meanwhile it takes as many. A step between two passes is one, on every worker alike. One that judges a validation is the
chief's, who tells the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from evener.loop.parts import Scheduler
from evener.loop.passes import Passes


class Schedulers:
    """From now on `step` of each goes by its clock.

    Args:
        several: there are several optimizers.
        apart: other workers make updates that this program takes no step for.
        again: steps of passes that are left out count, since nothing was restored.
        judged: called when the chief's has judged a validation.
        turned: called when one has come to go by another clock.
        inside: of each, whether it was last stepped within a pass, by a program that this one goes on with.
    """

    def __init__(  # noqa: PLR0913 - what they go by, each once
        self,
        schedulers: Sequence[Scheduler],
        passes: Passes,
        *,
        apart: bool,
        several: bool = False,
        again: bool,
        judged: Callable[[], None],
        turned: Callable[[], None],
        inside: Sequence[bool],
    ) -> None:
        self._passes, self._apart, self._again, self._judged, self._turned = passes, apart, again, judged, turned
        self.inside = [*inside, *[False] * len(schedulers)][: len(schedulers)]
        if apart and not several:  # the version counts the updates of all optimizers
            passes.caught_up = self._catch_up
        self._really = [self._follow(number, scheduler) for number, scheduler in enumerate(schedulers)]

    def _follow(self, number: int, scheduler: Scheduler) -> Callable[..., None]:
        really = scheduler.step

        def step(_self: Scheduler, *args: Any, **kwargs: Any) -> None:
            if isinstance(scheduler, ReduceLROnPlateau):
                self._judge(really, *args, **kwargs)
            elif self._again or not self._passes.left_out:
                if self.inside[number] != self._passes.inside:
                    self.inside[number] = self._passes.inside
                    self._turned()
                for _ in range(self._passes.moved if self._apart and self._passes.inside else 1):
                    really(*args, **kwargs)

        def state_dict(_self: Scheduler) -> dict[str, Any]:
            """PyTorch's is all attributes, of which these two would be saved with all that they refer to."""
            return {key: value for key, value in said().items() if key not in ("step", "state_dict")}

        said = scheduler.state_dict
        scheduler.step = MethodType(step, scheduler)  # type: ignore[method-assign]
        scheduler.state_dict = MethodType(state_dict, scheduler)  # type: ignore[method-assign]
        return really

    def _judge(self, really: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._passes.turn.chief and not self._passes.left_out:
            really(*args, **kwargs)
            self._judged()

    def _catch_up(self, updates: int) -> None:
        """Others have made the last updates of a pass: the next gradient is to find the rate that comes after them."""
        for really, inside in zip(self._really, self.inside, strict=True):
            for _ in range(updates if inside else 0):
                really()

    def idled(self) -> None:
        """Other towers have taken a step: schedulers that the program steps with each of its own go along."""
        for really, inside in zip(self._really, self.inside, strict=True):
            if inside:
                really()
