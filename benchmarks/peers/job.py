"""What every peer's program is told on its command line, and where it counts its steps. Standard library only.

A program trains until it is ended. It counts each gradient in a `Meter`, a small file that the driver maps too: so what
was done in a window of time, and how the loss fell, is read in the same way from all of them, and no peer has to stop.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import signal
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

BATCH, CLASSES, PIXELS = 100, 10, 784
LIMIT = 600  # seconds
LOSSES = 1024  # of its first steps a worker keeps this many
_COUNTED, _LOSS = struct.Struct("=qdd"), struct.Struct("=df")
_SLOT = _COUNTED.size + LOSSES * _LOSS.size


class Mark(NamedTuple):
    """Where one worker stands."""

    steps: int
    at: float  # `time.monotonic` of the last step
    first: float  # of the first step; 0: none so far


class Meter:
    """One slot for each worker that counts. A slot is written by one process only."""

    def __init__(self, path: str | Path, slot: int = 0) -> None:
        self._file = Path(path).open("r+b")  # noqa: SIM115 - as long as this lives
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._at, self._steps, self._first = slot * _SLOT, 0, 0.0

    @staticmethod
    def create(path: Path, slots: int) -> Meter:
        path.write_bytes(bytes(slots * _SLOT))
        return Meter(path)

    def count(self, loss: float) -> None:
        """One more gradient of this worker is used."""
        now = time.monotonic()
        self._first = self._first or now
        if self._steps < LOSSES:
            _LOSS.pack_into(self._map, self._at + _COUNTED.size + self._steps * _LOSS.size, now, loss)
        self._steps += 1
        _COUNTED.pack_into(self._map, self._at, self._steps, now, self._first)

    def mark(self, slot: int) -> Mark:
        return Mark(*_COUNTED.unpack_from(self._map, slot * _SLOT))

    def losses(self, slots: Iterable[int]) -> list[float]:
        """Of the first steps of these workers, in the order in which they were done."""
        found = []
        for slot in slots:
            first = slot * _SLOT + _COUNTED.size
            kept = min(self.mark(slot).steps, LOSSES)
            found += [_LOSS.unpack_from(self._map, first + step * _LOSS.size) for step in range(kept)]
        return [loss for _, loss in sorted(found, key=lambda one: one[0])]

    def close(self) -> None:
        self._map.close()
        self._file.close()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of one way of training. Hosts are "ADDRESS:PORT"."""

    role: str  # "ps", "worker", "chief", or "launcher" where one process starts the others
    index: int
    ps: tuple[str, ...]
    workers: tuple[str, ...]
    mode: str  # what that means is the program's own
    model: str  # "mlp" or "transformer"
    hidden: int
    data: str  # a file with "inputs" float32 [N, 784] and "target" int64 [N]
    meter: str
    keys: str  # a directory, where links have keys

    def slot(self) -> Meter:
        """Where this process counts."""
        return Meter(self.meter, self.index if self.role == "worker" else 0)

    @property
    def learning_rate(self) -> float:
        """Plain SGD; wide networks need small steps, since each hidden unit moves the scores."""
        # With 11 M parameters and twice this rate gradients that are three updates late diverge: of four workers in
        # async, or of two with two gradients in flight each.
        if self.model != "mlp" or self.hidden <= 500:
            return 0.1
        return 0.05 * 500 / self.hidden

    @property
    def stddev(self) -> float:
        """Of the output layer's truncated normal; 0.1 as the tutorials, less for wide networks."""
        return 0.1 * min(1.0, (500 / self.hidden) ** 0.5)

    @property
    def nbytes(self) -> int:
        """Of all parameters of the MLP."""
        return 4 * (PIXELS * self.hidden + self.hidden * (CLASSES + 1) + CLASSES)


def end_with_parent() -> None:
    """This process ends when the driver does, however that ends, and after ten minutes in any case."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.alarm(LIMIT)


def told() -> Job:
    """The command line of this process, which is bounded in time from here on."""
    end_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=["ps", "worker", "chief", "launcher"], required=True)
    for name in ("--index", "--hidden"):
        parser.add_argument(name, type=int, default=0)
    for name in ("--ps", "--workers"):
        parser.add_argument(name, type=lambda text: tuple(text.split(",")) if text else (), default=())
    parser.add_argument("--model", choices=["mlp", "transformer"], default="mlp")
    for name in ("--mode", "--data", "--keys"):
        parser.add_argument(name, default="")
    parser.add_argument("--meter", required=True)
    return Job(**vars(parser.parse_args()))
