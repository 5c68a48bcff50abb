"""The end of a process."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End this process as Python does, but leave PyTorch's modules to the kernel.

    Taking them apart costs a quarter of a second of a core in each process, a fifth of what importing them costs.
    What `atexit` was given runs as ever, what was printed is flushed, and threads that are no daemons are waited for.
    """
    waited_for = [
        thread for thread in threading.enumerate() if not (thread.daemon or thread is threading.main_thread())
    ]
    if "torch" not in sys.modules or waited_for:
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed by whoever reads, or never opened
            stream.flush()
    os._exit(status)
