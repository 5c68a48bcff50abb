"""Threads that stand for the towers of one machine, and where they tell each other a word."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

DEADLINE = 60.0  # seconds, for what happens at once


class Meeting:
    def __init__(self, size):
        self._barrier = threading.Barrier(size, timeout=DEADLINE)
        self._said = [""] * size

    def gather(self, rank, word=""):
        """What all say, in the order of ranks."""
        self._said[rank] = word
        self._barrier.wait()
        found = list(self._said)
        self._barrier.wait()
        return found


def together(size, what):
    """What each of `size` threads makes of (rank, gather)."""
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: what(rank, lambda word="": meeting.gather(rank, word)), range(size)))


def descriptors() -> int:
    """How many this process has open, and holds on to."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
