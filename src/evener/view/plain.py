"""What people see of a run: a live table in a terminal, plain lines in a pipe or a file, and the last words of a run.

A view only hears reports; it never asks a task anything. It has no timer of its own for what it says: a report
comes at least every 0.2 s while a run lives, so whatever a limit holds back is said with a later report.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from evener.report import AnyReport, Evaluated, Line, Progress, Status
from evener.view.texts import RUN, eta, figures, metrics_line, printable, step_text
from evener.view.waits import LastingWaits

#: Seconds between two plain lines of progress.
HEARTBEAT = 5.0
#: Seconds between two plain lines about waiting, of one task or of the run.
WAIT_LIMIT = 1.0
#: Seconds after which a task that still waits for the same is told of again.
STILL_WAITING = 10.0
_COUNTER = re.compile(r"\s*\(\d+ s\b[^)]*\)")


class View(Protocol):
    """Shows a run to a person. Nothing that happens to the stream may harm the run."""

    def hear(self, report: AnyReport) -> None:
        """Take in one report; cheap, since one-process runs call it from the training loop."""

    def say(self, text: str) -> None:
        """One line from the launcher itself."""

    def close(self) -> None:
        """Show the last state and give the terminal back. Safe to call twice."""


def make_view(*, stream: TextIO, tasks: Sequence[str], title: str, clock: Callable[[], float]) -> View:
    """A live view if `stream` is a terminal that can redraw lines, else plain lines.

    `isatty` is asked besides rich, because FORCE_COLOR makes rich call any pipe a terminal. Terminals that cannot move
    the cursor (TERM=dumb) or cannot show the characters of the table get plain lines as well.

    Args:
        stream: where people look; it is never closed.
        tasks: the rows, in order: "ps:0", "worker:0", ... Others get a row when they first report.
        title: one line on top: what is trained, by whom.
        clock: seconds, monotonic.
    """
    if stream.isatty():
        from rich.console import Console

        from evener.view.live import LiveView

        console = Console(file=stream, highlight=False)
        if console.is_terminal and console.is_interactive and console.encoding.lower().startswith("utf"):
            return LiveView(console=console, tasks=tasks, title=title, clock=clock)
    return PlainView(stream=stream, tasks=tasks, title=title, clock=clock)


class PlainView:
    """One line for one event, flushed at once: for pipes, files, CI and `kubectl logs`.

    Progress comes every 5 s; a wait is told as soon as it has lasted 2 s or changes, but at most once a second, and
    again every 10 s while it lasts.
    """

    def __init__(self, *, stream: TextIO, tasks: Sequence[str], title: str, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._start = clock()
        self._width = max(len(name) for name in (RUN, *tasks))
        self._silent = False
        self._waits = LastingWaits(clock)
        # of the run
        self._told_at = -math.inf
        self._told = ""  # for whom the run waits, as last printed
        # of each task
        self._wait_told_at: dict[str, float] = {}
        self._wait_told: dict[str, str] = {}
        self._wait_held: dict[str, str] = {}  # came within the second after the last one; said with a later report
        self.say(title)

    def hear(self, report: AnyReport) -> None:
        match self._waits.seen(report):
            case Line() as report:
                self._print(report.task, report.text)
            case Progress() as progress:
                self._hear_progress(progress)
            case Status() as status:
                self._hear_status(status)
            case Evaluated() as report:
                self._print(RUN, metrics_line(report))
        if self._wait_held:
            self._tell_waits()

    def say(self, text: str) -> None:
        self._print(RUN, text)

    def close(self) -> None:
        """Every line was flushed when it was printed."""

    def _hear_progress(self, progress: Progress) -> None:
        sentence = _COUNTER.sub("", progress.waiting_for)
        if not sentence:
            self._told = ""
        changed = bool(sentence) and sentence != self._told
        now = self._clock()
        if now - self._told_at < (WAIT_LIMIT if changed else HEARTBEAT):
            return
        self._told_at, self._told = now, sentence
        waiting = f"; waiting for: {progress.waiting_for}" if sentence else ""
        self._print(RUN, ", ".join([step_text(progress), *figures(progress), *eta(progress)]) + waiting)

    def _hear_status(self, status: Status) -> None:
        sentence = _COUNTER.sub("", status.waiting_for)
        if not sentence:
            self._wait_told.pop(status.task, None)
        told_at = self._wait_told_at.get(status.task, -math.inf)
        news = sentence != self._wait_told.get(status.task) or self._clock() - told_at >= STILL_WAITING
        if sentence and news:
            self._wait_held[status.task] = status.waiting_for
        else:
            self._wait_held.pop(status.task, None)

    def _tell_waits(self) -> None:
        now = self._clock()
        for task, sentence in list(self._wait_held.items()):
            if now - self._wait_told_at.get(task, -math.inf) >= WAIT_LIMIT:
                self._wait_told_at[task] = now
                self._wait_told[task] = _COUNTER.sub("", sentence)
                del self._wait_held[task]
                self._print(task, f"waiting for {sentence}")

    def _print(self, who: str, text: str) -> None:
        if self._silent:
            return
        prefix = f"{self._clock() - self._start:6.1f}s  {who:<{self._width}}  "
        try:
            for line in text.splitlines():
                self._stream.write(printable(prefix + line, self._stream.encoding) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            # Nobody reads any more (`evener train ... | head`). Python flushes the rest at its exit and would fail
            # there again, with exit code 120 for a run that went well; so the rest goes nowhere.
            self._silent = True
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        except (OSError, ValueError):  # closed, or its disk is full
            self._silent = True
