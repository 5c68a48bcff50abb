"""A program in a ps task: from `prepare` on it serves, until the run is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evener.errors import ConfigError
from evener.loop.parts import Parts
from evener.loop.remote import check_for_servers
from evener.report import Line
from evener.task.build import Built
from evener.task.script import Joining, Over
from evener.task.server import run_server
from evener.worker.compute.constants import checksum

#: Numbers of a parameter whose gradient is watched; and what each of them is then, more than any hook would leave.
SMALL, MUCH = 1 << 16, 1e4
HOOKED = (
    "warning: the step hooks of {} run here, with the parameters and gradients of their optimizer's param_groups. "
    "Those of the model that the program made are others: what a hook reads there is not what is trained"
)


def put_in_training(optimizers: Sequence[Optimizer]) -> None:
    """Those that have two modes, as schedulefree's have: here steps are taken alone, maybe before the chief says so."""
    for optimizer in optimizers:
        if callable(train := getattr(optimizer, "train", None)):
            train()


def serve(joining: Joining, parts: Parts, built: Built) -> NoReturn:
    """Raises Over when the run has ended, and what `run_server` raises."""
    settings = joining.settings
    check_for_servers(parts.optimizers, settings)
    if hooked := [one for one in parts.optimizers if one._optimizer_step_pre_hooks or one._optimizer_step_post_hooks]:
        _watch_hooks(hooked, parts.model)
        if not joining.index:
            kinds = " and ".join(dict.fromkeys(type(one).__name__ for one in hooked))
            joining.report(Line(joining.name, HOOKED.format(kinds)))

    def again() -> Built:
        return built  # values as the program made them: nothing here has changed them

    run_server(
        joining.index, built, settings, run=joining.run, rendezvous=joining.rendezvous,
        stop_asked=joining.stop_asked, report=joining.report, leave_asked=joining.leave_asked, again=again,
        latecomers=joining.latecomers,
    )  # fmt: skip
    raise Over(0)


def _watch_hooks(optimizers: Sequence[Optimizer], model: nn.Module) -> None:
    """A hook that goes to the model itself, past the optimizer, finds the values that the program began with.

    What it did to them would come to nothing, and the next life would begin with it. Gradients it would find none, and
    leave those that are applied as they are: so it finds some, which nobody needs.
    """
    parameters = list(model.parameters())
    first, written, steps = checksum(parameters), sum(p._version for p in parameters), 0
    baits = _baits(parameters)

    def check(made: Optimizer, _args: Any, _kwargs: Any) -> None:
        nonlocal steps
        steps += 1
        deep = not steps & (steps - 1)
        seen = sum(p._version for p in parameters) != written
        if (seen or deep) and checksum(parameters) != first:
            raise _past_the_optimizer(made, "parameters")
        if any(_changed(parameter.grad, bait, deep=deep) for parameter, bait in baits):
            raise _past_the_optimizer(made, "gradients")
        for parameter, bait in baits:
            parameter.grad = bait

    for parameter, bait in baits:
        parameter.grad = bait
    for optimizer in optimizers:
        optimizer.register_step_post_hook(check)


def _baits(parameters: list[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    """Gradients of the parameters that are small, and at least of the smallest."""
    trained = sorted((p for p in parameters if p.requires_grad), key=lambda p: p.numel())
    return [(p, torch.full_like(p, MUCH).detach()) for n, p in enumerate(trained) if not n or p.numel() <= SMALL]


def _changed(now: Tensor | None, bait: Tensor, *, deep: bool) -> bool:
    """None: a hook has cleared it, as it may."""
    return now is not None and (now is not bait or bait._version > 0 or (deep and bool(bait.ne(MUCH).any())))


def _past_the_optimizer(made: Optimizer, what: str) -> ConfigError:
    return ConfigError(
        f"a step hook of {type(made).__name__} has changed {what} of the model by itself.",
        why="in a ps task the optimizer updates parameters in other memory; the model stays as it was made.",
        fix='let the hook take them from its optimizer: for group in optimizer.param_groups: group["params"]'
        + ("; or change them in the program, before step()." if what == "gradients" else "."),
    )
