"""A program in a ps task: from `prepare` on it serves, until the run is over."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn
from torch.optim import Optimizer

from evener.errors import ConfigError
from evener.loop.parts import Parts
from evener.loop.remote import check_for_servers
from evener.task.build import Built
from evener.task.script import Joining, Over
from evener.task.server import run_server
from evener.worker.compute.constants import checksum


def serve(joining: Joining, parts: Parts, built: Built) -> NoReturn:
    """Raises Over when the run has ended, and what `run_server` raises."""
    settings = joining.settings
    check_for_servers(parts.optimizers, settings)
    for optimizer in parts.optimizers:
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            _watch_hooks(optimizer, parts.model)

    def again() -> Built:
        return built  # values as the program made them: nothing here has changed them

    run_server(
        joining.index, built, settings, run=joining.run, rendezvous=joining.rendezvous,
        stop_asked=joining.stop_asked, report=joining.report, leave_asked=joining.leave_asked, again=again,
    )  # fmt: skip
    raise Over(0)


def _watch_hooks(optimizer: Optimizer, model: nn.Module) -> None:
    """A hook that goes to the model itself, past the optimizer, finds the values that the program began with.

    What it did to them would come to nothing, and the next life would begin with it.
    """
    parameters = list(model.parameters())
    first, written, steps = checksum(parameters), sum(p._version for p in parameters), 0

    def check(made: Optimizer, _args: Any, _kwargs: Any) -> None:
        nonlocal steps
        steps += 1
        seen = sum(p._version for p in parameters) != written
        if (seen or not steps & (steps - 1)) and checksum(parameters) != first:
            raise ConfigError(
                f"a step hook of {type(made).__name__} has changed parameters of the model by itself.",
                why="in a ps task the optimizer updates parameters in other memory; the model stays as it was made.",
                fix='let the hook take them from its optimizer: for group in optimizer.param_groups: group["params"].',
            )

    optimizer.register_step_post_hook(check)
