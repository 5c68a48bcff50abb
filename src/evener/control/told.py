"""A task that is told to leave: SIGTERM or SIGHUP, as batch systems and spot machines give them.

It saves or gives back what it holds, and ends with status 4 ("preempted") within its grace. That is not a failure: a
launcher starts it again at no cost, or the machine goes away and the others go on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from evener.errors import PREEMPTED, Preempted

#: What tells a task to leave. Ctrl-C (SIGINT) is another matter: it ends the run.
LEAVE = (signal.SIGTERM, signal.SIGHUP)
#: The words by which a reason is recognised.
TOLD = "was told to leave"
#: How a launcher speaks of a task that has.
LEFT = "left, as it was told to"


class Told:
    """Whether this task was told to leave, and by which signal or notice.

    Args:
        raises: the signal interrupts what the main thread is doing with `Preempted`. A worker has nothing that others
            could lose; a ps task has, and asks `reason` between two messages.
        notice: called by the handler, at once.
    """

    def __init__(self, task: str, *, raises: bool = False, notice: Callable[[], object] = lambda: None) -> None:
        self.task, self._raises, self._notice = task, raises, notice
        self._signal = ""
        self._noticed = ""  # that the machine goes away

    def reason(self) -> str:
        """Why this task is to leave; empty while it may stay."""
        return f"{self.task} {TOLD} ({self._signal})" if self._signal else ""

    def announce(self, notice: str) -> None:
        """The machine goes away, as a notice says: leave as after a signal. Any thread may call it."""
        self._noticed = notice
        os.kill(os.getpid(), signal.SIGTERM)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self._signal and self._noticed:
            self._noticed = ""  # a machine that has given notice goes on to shut down: told once more, not twice
            return
        if self._signal:
            os._exit(PREEMPTED)  # told twice: at once
        self._signal = self._noticed or signal.Signals(number).name
        self._notice()
        if self._raises:
            raise Preempted(self.reason())


@contextmanager
def told_to_leave(told: Told, *, grace: float) -> Iterator[None]:
    """Listen for these signals; `grace` seconds after the first the process ends, whatever it is doing then."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, told) for number in LEAVE}
    # A handler waits until PyTorch returns from a long operation; the number in this pipe is there at once.
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_after, args=(reader, grace), name="grace", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)


def _end_after(reader: int, grace: float) -> None:
    while heard := os.read(reader, 1):
        if heard[0] in LEAVE:
            threading.Event().wait(grace)
            os._exit(PREEMPTED)
    os.close(reader)
