"""PyTorch's optimizers without its compiler, for as long as nothing is compiled.

`torch.optim` marks its methods for `torch.compile`: not to be traced, and where a graph ends. For that it imports the
compiler (`torch._dynamo`) as soon as a process makes its first optimizer: 0.9 s of a core and 70 MB, half of the time
from a command to its first step. The marks say nothing to who does not compile, so here the methods do without them
until the compiler is there.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

COMPILER = "torch._dynamo"
Method = Callable[..., Any]
#: Methods of every optimizer that are not to be traced.
_UNTRACED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def put_off_compiler() -> None:
    """Let PyTorch's own optimizers import the compiler when somebody compiles, and not when the first one is made.

    From the moment on at which a program imports it (as `torch.compile` does) all is as PyTorch has made it. Where
    another version of PyTorch has other marks nothing happens. Twice is as good as once.
    """
    if COMPILER in sys.modules:
        return
    for name in _UNTRACED:
        _unmark(Optimizer, name, "_disable_dynamo", lambda plain: plain)
    for kind in vars(torch.optim).values():
        if isinstance(kind, type) and issubclass(kind, Optimizer):
            _unmark(kind, "step", "_use_grad_for_differentiable", _differentiable)


def _unmark(kind: type[Optimizer], name: str, marker: str, made: Callable[[Method], Method]) -> None:
    """Give a class `made` of what its method was before this function of PyTorch has marked it, if it has."""
    marked = vars(kind).get(name)
    by = getattr(getattr(marked, "__code__", None), "co_qualname", "")
    if marked is not None and by.startswith(f"{marker}.<locals>.") and hasattr(marked, "__wrapped__"):
        setattr(kind, name, _unless_compiling(marked, made(marked.__wrapped__)))


def _unless_compiling(marked: Method, plain: Method) -> Method:
    @functools.wraps(marked)
    def method(*args: Any, **kwargs: Any) -> Any:
        return (marked if COMPILER in sys.modules else plain)(*args, **kwargs)

    return method


def _differentiable(step: Method) -> Method:
    """A step with autograd off, or on where the optimizer is itself to be differentiated: PyTorch's mark does this."""

    def method(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            return step(optimizer, *args, **kwargs)

    return method
