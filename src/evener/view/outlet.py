"""Standard output that may have no reader: whoever writes to it never waits, and is not told that it failed.

A pipe whose reader has stopped, a terminal after Ctrl-S, a laptop that sleeps at the other end of ssh: they take some
kilobytes and then nothing, and a `print` waits for them as long as that lasts. So what is printed goes to a thread,
which waits in its stead. What is too much for its memory is left out, and a line says how many lines that were as soon
as there is somebody to read it. A thread rather than a descriptor that does not block: that is a property of the open
file, which we share with the shell and with every other program that writes there.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

#: Bytes that wait for a reader, at most.
MOST = 1 << 20
#: Seconds that the last words of a program wait for one.
LAST_WORDS = 10.0
#: Whoever read has gone, for good.
GONE = (errno.EPIPE, errno.ENXIO, errno.EBADF, errno.ECONNRESET)


class Outlet:
    """Takes the place of a text stream that has a descriptor, until `close`."""

    def __init__(self, stream: TextIO, *, most: int = MOST) -> None:
        self._stream, self._most = stream, most
        with contextlib.suppress(OSError, ValueError):
            stream.flush()  # what was printed before comes before
        self._fd = os.dup(stream.fileno())
        self._terminal = os.isatty(self._fd)  # one that was hung up is none
        self._process = os.getpid()
        self._lock = threading.RLock()  # a signal's handler may print while somebody prints
        self._queue: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()  # and lines that it stands for
        self._behind = 0  # bytes in it
        self._cut = False  # something was left out that nobody was told of,
        self._missed = 0  # which ended so many lines
        self._partial = False  # what went into the queue last does not end a line
        self._why = ""  # the last error
        self._gone = self._over = False
        self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Any:
        """All else that a stream can do: `encoding`, `isatty`, `fileno`, ..."""
        return getattr(self._stream, name)

    @property
    def behind(self) -> bool:
        """Whether something waits for a reader."""
        return self._behind > 0

    def write(self, text: str) -> int:
        if os.getpid() != self._process or self._over:  # forked off, to load data say: the thread is not here
            return self._stream.write(text)
        data = text.encode(self._stream.encoding or "utf-8", "backslashreplace")
        with self._lock:
            # Once something was left out, half of the memory must be free again: else every second line would be.
            room = self._most // 2 if self._cut else self._most
            if self._behind and self._behind + len(data) > room:
                self._cut = True
                self._missed += text.count("\n")
            elif data:
                self._tell()
                self._put(data, text.count("\n"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """It goes out as fast as it is taken; of a process that was forked off, now."""
        if os.getpid() != self._process or self._over:
            self._stream.flush()

    def close(self, seconds: float) -> str:
        """Wait so long until all is written. Why not everything was; "" if it was, or if nobody reads any more."""
        with self._lock:
            self._tell()
            self._over = True
            self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            return "nobody reads it"
        if self._gone:
            # Python flushes at its exit and would fail there, with exit code 120 for a run that went well.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            return ""
        return self._why if self._cut else ""

    def _tell(self) -> None:
        if self._cut:
            many, self._missed, self._cut = self._missed, 0, False
            lines = f"{many} lines were" if many > 1 else "a line was"
            self._put(b"\n" * self._partial + f"({lines} not shown: nobody took them)\n".encode(), many)

    def _put(self, data: bytes, lines: int) -> None:
        self._partial = not data.endswith(b"\n")
        self._behind += len(data)
        self._queue.put((data, lines))

    # --- in the thread

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            data, lines = item
            why = "" if self._gone else self._written(data)
            with self._lock:
                self._behind -= len(data)
                if why:
                    self._why, self._cut = why, True
                    self._missed += lines
        os.close(self._fd)

    def _written(self, data: bytes) -> str:
        """Why not; "" if it was."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # a descriptor that we were given so
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError as error:
                self._gone = error.errno in GONE or (error.errno == errno.EIO and self._terminal)
                return "" if self._gone else error.strerror or str(error)
        return ""


def _is_file(stream: object) -> bool:
    """Whether the system knows it. A notebook's stream may have a descriptor and yet not be what is behind it."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() >= 0
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def unhindered(stream: TextIO | None = None) -> Iterator[TextIO]:
    """In this block nothing that is printed waits for a reader, to `stream` and to standard output and error.

    What is no file of the system's, as in a notebook or a test, is left as it is.
    """
    before = sys.stdout, sys.stderr
    stream = stream if stream is not None else sys.stdout
    streams = {id(each): each for each in (stream, *before) if _is_file(each)}
    outlets = {name: Outlet(each) for name, each in streams.items()}
    sys.stdout, sys.stderr = (cast(TextIO, outlets.get(id(each), each)) for each in before)
    try:
        yield cast(TextIO, outlets.get(id(stream), stream))
    finally:
        _restore(before, outlets)


def _restore(before: tuple[TextIO, TextIO], outlets: dict[int, Outlet]) -> None:
    deadline = time.monotonic() + LAST_WORDS  # for all together
    last = outlets.pop(id(before[1]), None)
    failed = [why for outlet in outlets.values() if (why := outlet.close(max(0.0, deadline - time.monotonic())))]
    if last is not None:
        if failed:
            last.write(f"evener: not all that was printed could be written ({failed[0]})\n")
        last.close(max(0.0, deadline - time.monotonic()))
    sys.stdout, sys.stderr = before
