"""What a recipe prints in a task: it goes into the task's log, and to the person who watches the run.

A `print` in a hook or a model is how most people look into their training. In one process it stands on their screen; in
a task it would be found by those alone who know where the log is.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, cast

#: Lines of one task that are passed on in a second; a loop that prints each step must not drown the others.
LINES = 10
#: Characters of a line that are passed on.
LONGEST = 500
#: What moves the cursor or changes colours: the view owns the terminal.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)?")


class Printed:
    """A task's standard output: its log, from which whole lines are passed on, at most `LINES` a second.

    Args:
        log: gets everything.
        tell: gets a line; returns False when it cannot be taken just now: nothing waits for that.
        clock: seconds, monotonic.
        rest: where a person finds the rest.
    """

    def __init__(self, log: TextIO, tell: Callable[[str], bool], *, clock: Callable[[], float], rest: str) -> None:
        self._log, self._tell, self._clock, self._rest = log, tell, clock, rest
        self._process = os.getpid()
        self._lock = threading.RLock()  # a signal's handler may print while somebody prints
        self._begun = ""  # a line without its end
        self._since, self._count = clock(), 0  # the present second, and what was passed on in it
        self._cut = False  # and whether that was told

    def __getattr__(self, name: str) -> Any:
        """All else that a stream can do: `buffer`, `encoding`, `fileno`, ..."""
        return getattr(self._log, name)

    def write(self, text: str) -> int:
        count = self._log.write(text)
        if os.getpid() == self._process:  # a process that was forked off, to load data say, has the log alone
            with self._lock:
                *whole, self._begun = (self._begun + text).split("\n")
                self._begun = self._begun[-4 * LONGEST :]
                for line in whole:
                    self._pass_on(line)
        return count

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def finish(self) -> None:
        """Pass on what was printed last without the end of a line."""
        if self._begun:
            self.write("\n")

    def _pass_on(self, line: str) -> None:
        text = _plain(line)
        if not text:
            return
        now = self._clock()
        if now - self._since >= 1.0:
            self._since, self._count, self._cut = now, 0, False
        if self._count < LINES and self._tell(text):
            self._count += 1
        elif not self._cut:
            self._cut = self._tell(f"(prints more than is shown: the rest is in {self._rest})")


def _plain(line: str) -> str:
    """As it would stand on a screen in the end: a progress bar writes over itself after each carriage return."""
    text = _ESCAPES.sub("", line.rstrip("\r")).rpartition("\r")[2].expandtabs().rstrip()
    text = "".join(one for one in text if one.isprintable())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


class Lossy:
    """A stream to a file. A disk that fails takes none of it, but ends no training for that."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


@contextlib.contextmanager
def passed_on(tell: Callable[[str], bool], *, clock: Callable[[], float], rest: str) -> Iterator[None]:
    """In this block `print` goes to `tell` besides standard output, which is a log file."""
    before, errors = sys.stdout, sys.stderr
    if isinstance(before, io.TextIOWrapper):
        # A task that is killed must not take with it what it printed; nor may a narrow encoding end training.
        before.reconfigure(line_buffering=True, errors="backslashreplace")
    printed = Printed(cast(TextIO, Lossy(before)), tell, clock=clock, rest=rest)
    sys.stdout, sys.stderr = cast(TextIO, printed), cast(TextIO, Lossy(errors))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            printed.finish()
        sys.stdout, sys.stderr = before, errors
