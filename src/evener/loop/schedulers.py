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
        apart: other workers make updates that this program takes no step for.
        again: steps of passes that are left out count, since nothing was restored.
        judged: called when the chief's has judged a validation.
    """

    def __init__(
        self,
        schedulers: Sequence[Scheduler],
        passes: Passes,
        *,
        apart: bool,
        again: bool,
        judged: Callable[[], None],
    ) -> None:
        self._passes, self._apart, self._again, self._judged = passes, apart, again, judged
        self._inside = [False] * len(schedulers)  # whether it was last stepped within a pass
        self._really = [self._follow(number, scheduler) for number, scheduler in enumerate(schedulers)]

    def _follow(self, number: int, scheduler: Scheduler) -> Callable[..., None]:
        really = scheduler.step

        def step(_self: Scheduler, *args: Any, **kwargs: Any) -> None:
            if isinstance(scheduler, ReduceLROnPlateau):
                self._judge(really, *args, **kwargs)
            elif self._again or not self._passes.left_out:
                self._inside[number] = self._passes.inside
                for _ in range(self._passes.moved if self._apart and self._passes.inside else 1):
                    really(*args, **kwargs)

        scheduler.step = MethodType(step, scheduler)  # type: ignore[method-assign]
        return really

    def _judge(self, really: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._passes.turn.chief and not self._passes.left_out:
            really(*args, **kwargs)
            self._judged()

    def idled(self) -> None:
        """Other towers have taken a step: schedulers that the program steps with each of its own go along."""
        for really, inside in zip(self._really, self._inside, strict=True):
            if inside:
                really()
