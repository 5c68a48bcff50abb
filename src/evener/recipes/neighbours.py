"""Where a user's file finds what it imports: Python's own modules, its neighbours, what is installed; in this order."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


class _Standard:
    """Finds the modules of Python itself, and no others."""

    def __init__(self) -> None:
        places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
        self._path = [*places, *(f"{place}/lib-dynload" for place in places)]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if path is not None or name not in sys.stdlib_module_names:
            return None
        return PathFinder.find_spec(name, self._path, target)


_STANDARD = _Standard()


@contextmanager
def neighbours_of(directory: Path) -> Iterator[None]:
    """Let imports see `directory` first after Python's own modules while the block runs, and last ever after.

    Ever after, because functions of the imported file may import their neighbours when they are called. After Python's
    own, because a neighbour called random.py or types.py is meant for somebody else than for PyTorch, which may import
    those only now.
    """
    entry = str(directory)
    sys.path.insert(0, entry)
    sys.meta_path.insert(0, _STANDARD)
    try:
        yield
    finally:
        with suppress(ValueError):  # the imported code may change these as well
            sys.meta_path.remove(_STANDARD)
        with suppress(ValueError):
            sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)
