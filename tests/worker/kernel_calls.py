"""Calls of the kernel, counted where Python makes them: sockets, polls, files. No tool is needed, and no process.

`sys.setprofile` tells every function in C that this thread calls, so a call that nobody thought of counts too, and
nothing is replaced by something that counts. It agrees with what `strace` sees of a step (`test_system_calls.py`), but
for what PyTorch and the allocator ask for themselves: `passes.py` counts the blocks that they make.
"""

from __future__ import annotations

import select
import sys
from collections import Counter
from types import ModuleType
from typing import Any

_MODULES = {"posix", "io", "_socket", "select", "_io", "fcntl", "_ssl", "_signal", "_posixsubprocess"}
#: What these modules do by themselves.
_OWN = {"fileno", "fspath", "fsencode", "fsdecode", "gettimeout", "pending"}
_OF_POLL = {"poll.register", "poll.unregister", "poll.modify"}


class KernelCalls:
    """Those of this thread, by the name of what was called ("socket.send"), while it is entered.

    Entered within another one, that one does not count meanwhile: several tasks may share a thread.
    """

    def __init__(self) -> None:
        self.seen = Counter[str]()

    def __enter__(self) -> KernelCalls:
        self._outer = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._outer)

    def _see(self, frame: Any, event: str, called: Any) -> None:
        if event == "c_call" and asks_the_kernel(called):
            self.seen[called.__qualname__] += 1


def asks_the_kernel(called: Any) -> bool:
    name, owner = called.__name__, called.__self__
    if owner is None or isinstance(owner, ModuleType):
        if called.__module__ == "time":
            return name == "sleep"
        return called.__module__ in _MODULES and name not in _OWN and called is not select.poll  # which makes one
    if called.__qualname__ in _OF_POLL or name in _OWN:
        return False
    return any(one.__module__ in _MODULES for one in type(owner).__mro__)
