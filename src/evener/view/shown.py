"""A run is shown while it lasts, on a stream that may have no reader."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from evener.view.outlet import unhindered
from evener.view.plain import View, make_view


@contextmanager
def shown(stream: TextIO | None, *, tasks: Sequence[str], title: str, quiet: bool = False) -> Iterator[View]:
    """Show a run in this block. What it prints itself, in one process, waits for no reader either.

    Args:
        stream: standard output if None.
        tasks: as for `make_view`, and `title` too.
        quiet: show nothing.
    """
    with unhindered(stream) as out:
        view = make_view(stream=io.StringIO() if quiet else out, tasks=tasks, title=title, clock=time.monotonic)
        try:
            yield view
        finally:
            view.close()
