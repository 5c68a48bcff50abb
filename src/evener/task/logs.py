"""A task's log file where the task opens it itself. A disk that fails costs lines of it, and nothing else."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFile(logging.FileHandler):
    """Appends to a file, and tells once when it cannot, and once when it can again.

    Args:
        tell: gets these lines; it may log them.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        super().__init__(path, delay=True)
        self.setFormatter(logging.Formatter(FORMAT))
        self._path, self._tell = path, tell
        self._lost = 0  # records since it was told
        self._failed = False  # the record in hand
        with contextlib.suppress(OSError):  # the first record tells
            path.open("ab").close()

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        try:
            super().emit(record)
        except OSError:  # it cannot be opened
            self._refused()
        if self._lost and not self._failed:
            many, self._lost = self._lost, 0
            self._tell(
                f"the log {self._path} can be written again; {many} {'lines' if many > 1 else 'line'} of it lost"
            )

    def handleError(self, record: logging.LogRecord) -> None:
        """Of a record that could not be written; called where the error is handled."""
        if isinstance(sys.exc_info()[1], OSError):
            self._refused()
        else:
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()

    def _refused(self) -> None:
        error = sys.exc_info()[1]
        self._failed = True
        self._lost += 1
        if self._lost == 1:
            why = getattr(error, "strerror", None) or error
            self._tell(f"the log {self._path} cannot be written ({why}); training goes on")
