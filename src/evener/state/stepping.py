"""An optimizer's step, without what nobody looks at."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer, optimizer as hooks


def step(optimizer: Optimizer) -> None:
    """As `optimizer.step()`.

    PyTorch keeps a record of each step for its profiler and looks for hooks: 10 microseconds, 40 where caches are cold
    as after a gradient, a sixth of what a process alone spends beside its gradient. Where no profiler runs and there
    is no hook, the method of its class is called as it was written.
    """
    hooked, own = type(optimizer).step, vars(optimizer).get("step")
    #: A learning rate schedule puts one in its place that notes that a step was taken.
    scheduled = own is not None and hasattr(own, "_wrapped_by_lr_sched") and getattr(own, "__wrapped__", None) is hooked
    written: Any = getattr(hooked, "__wrapped__", None) if getattr(hooked, "hooked", False) else None
    if written is None or not (own is None or scheduled) or _is_watched(optimizer):
        optimizer.step()
        return
    if scheduled:
        optimizer._opt_called = True  # type: ignore[attr-defined]
    written(optimizer)


def _is_watched(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or hooks._global_optimizer_pre_hooks
        or hooks._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )
