"""Signals that ask a run to end: it saves first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

#: Ctrl-C, `kill`, and a terminal that was closed, which Windows has no signal for.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(slots=True)
class Interrupts:
    """Those that came, in order."""

    numbers: list[int] = field(default_factory=list)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.numbers.append(number)


@dataclass(slots=True)
class Remembered:
    """A Ctrl-C before a run collects signals: KeyboardInterrupt, as by Python's own handler, and it is not forgotten.

    That exception may get lost while modules are imported. Python itself takes one that comes while a module's lock is
    let go for an unraisable one, and compiled modules that try whether another one is there take any for "it is not".
    The run would begin as if nobody had asked for its end. At any other moment somebody above gets it, and deals with
    it: nothing is to be remembered of that.
    """

    came: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = self.came or _importing(frame)
        raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported there, or in a call further up."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib."):
        frame = frame.f_back
    return frame is not None


def remember() -> None:
    """From now on a Ctrl-C is remembered. One that is ignored stays so (`nohup`, a shell script's `&`)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, Remembered())


def raise_remembered() -> None:
    """Raise the KeyboardInterrupt that got lost, if one did. Once: whoever gets it now knows of it."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, Remembered) and handler.came:
        handler.came = False
        raise KeyboardInterrupt


@contextmanager
def collected(into: Interrupts | None = None) -> Iterator[Interrupts]:
    """Collect these signals instead of dying of them. Outside the main thread signals stay as they are.

    Args:
        into: where to; another thread may put some there too.

    Raises:
        KeyboardInterrupt: one came before, and got lost.
    """
    interrupts = Interrupts() if into is None else into
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    raise_remembered()
    before = {number: signal.signal(number, interrupts) for number in STOPPING}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
