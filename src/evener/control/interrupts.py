"""Signals that ask a run to end: it saves first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

#: Ctrl-C, `kill`, and a terminal that was closed.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Interrupts:
    """Those that came, in order."""

    numbers: list[int] = field(default_factory=list)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.numbers.append(number)


@contextmanager
def collected(into: Interrupts | None = None) -> Iterator[Interrupts]:
    """Collect these signals instead of dying of them. Outside the main thread signals stay as they are.

    Args:
        into: where to; another thread may put some there too.
    """
    interrupts = Interrupts() if into is None else into
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts) for number in STOPPING}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
