"""Workers that are slower than this machine makes them, so that a mode can be tried without slow machines.

`worker:1=3x` takes three times as long as it does; `worker:2=80ms` takes at least so long for a batch of --batch-size
samples, in proportion for others; `worker:3=lognormal(80ms,0.5)` at least what is drawn for each batch: 80 ms in the
median, the logarithm with this standard deviation. They sleep, so many fit on few cores.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from random import Random

from evener.errors import ConfigError

_ONE = re.compile(r"\s*worker:(\d{1,6})\s*=\s*(.+?)\s*$")
_TIMES = re.compile(r"(\d+(?:\.\d+)?)x$")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)$")
_DRAWN = re.compile(r"lognormal\(\s*([^,\s]+)\s*,\s*(\d+(?:\.\d+)?)\s*\)$")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
#: A slower worker than this would only ever be waited for.
MOST_SECONDS, MOST_TIMES, MOST_SPREAD = 3600.0, 1e4, 5.0


@dataclass(frozen=True, slots=True)
class Slowness:
    """How much longer one worker takes for a batch."""

    times: float = 1.0  # of its own computing
    seconds: float = 0.0  # at least, for a batch of the usual size; with a spread: in the median
    spread: float = 0.0  # standard deviation of the logarithm


def slownesses(text: str) -> dict[int, Slowness]:
    """Worker -> how slow it is to be.

    Raises:
        ConfigError: what that may not be, with an example.

    >>> slownesses("worker:1=3x,worker:2=lognormal(80ms,0.5)")[2]
    Slowness(times=1.0, seconds=0.08, spread=0.5)
    """
    found: dict[int, Slowness] = {}
    for one in re.split(r",(?![^(]*\))", text) if text.strip() else []:
        match = _ONE.match(one)
        slowness = _slowness(match[2]) if match else None
        if match is None or slowness is None or int(match[1]) in found:
            raise ConfigError(
                f"slow={text!r} cannot work.",
                why=f"{one.strip()!r} names no worker and how slow it is, or one a second time.",
                fix="write worker:1=3x,worker:2=80ms,worker:3=lognormal(80ms,0.5), with times above 0.",
            )
        found[int(match[1])] = slowness
    return found


def _slowness(text: str) -> Slowness | None:
    if (match := _TIMES.match(text)) and 1 <= float(match[1]) <= MOST_TIMES:
        return Slowness(times=float(match[1]))
    if (match := _DRAWN.match(text)) and 0 <= float(match[2]) <= MOST_SPREAD:
        seconds = _seconds(match[1])
        return None if seconds is None else Slowness(seconds=seconds, spread=float(match[2]))
    seconds = _seconds(text)
    return None if seconds is None else Slowness(seconds=seconds)


def _seconds(text: str) -> float | None:
    match = _SECONDS.match(text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    return seconds if 0 < seconds <= MOST_SECONDS else None


def check_slow(text: str, workers: int) -> None:
    """Raises ConfigError for what cannot be, or names a worker that there is not."""
    for worker in slownesses(text):
        if worker >= workers:
            raise ConfigError(
                f"slow={text!r} names worker:{worker}, and there are {workers}.", fix=f"use worker:0 to {workers - 1}."
            )


class Slowed:
    """How long one worker sleeps after each batch.

    Args:
        slowness: None: not at all.
        seed: of what is drawn.

    >>> Slowed(Slowness(times=3.0), 0).longer(0.02, 1), Slowed(Slowness(seconds=0.08), 0).longer(0.02, 0.5)
    (0.04, 0.02)
    """

    def __init__(self, slowness: Slowness | None, seed: int) -> None:
        self._slowness = slowness or Slowness()
        self._random = Random(seed)  # noqa: S311 - how long to sleep is no secret

    def longer(self, seconds: float, batches: float) -> float:
        """Seconds to sleep.

        Args:
            seconds: that it has computed.
            batches: of the usual size; half a batch takes half as long.
        """
        slow = self._slowness
        least = slow.seconds * batches
        if slow.spread:
            least *= math.exp(self._random.gauss(0.0, slow.spread))
        return max(0.0, seconds * (slow.times - 1.0), least - seconds)


def slowed(text: str, worker: int, seed: int) -> Slowed:
    """As `--slow` says of this worker; what is drawn follows from the run's seed and the worker."""
    return Slowed(slownesses(text).get(worker), seed * 1_000_003 + worker)
