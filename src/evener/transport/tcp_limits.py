"""How many may stand at a port, and who has to go when there are too many. Pure: books, numbers and a clock's reading.

Three states. *Half open*: connected, and has not said what a peer of ours says first (with keys: has proven none). Has
a few seconds, and makes room for the next when too many stand there: the oldest of the most crowded address goes, so a
crowd from one address costs the others nothing, and a real worker, whose handshake takes milliseconds, gets in.
*Waiting*: has opened a link and is not admitted; these are refused beyond a limit. *Inside*: admitted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

#: Seconds for a greeting, a handshake and the opening of a link.
HANDSHAKE_SECONDS = 5.0
#: Descriptors that no connection gets: for checkpoints, logs, data and the libraries beneath us.
RESERVE = 64
#: More descriptors than this are not asked for: the limit is inherited by children, and some of them count up to it.
MOST_DESCRIPTORS = 1 << 16


def reserve(descriptors: int) -> int:
    """How many are kept back of so many; where there are few, a quarter.

    >>> reserve(1024), reserve(40)
    (64, 10)
    """
    return min(RESERVE, descriptors // 4)


@dataclass(frozen=True, slots=True)
class Caps:
    """At most so many connections in each state; half of all descriptors stay for those who are admitted."""

    half_open: int = 1024
    half_open_each: int = 256  # from one address: a machine may start many workers at once
    waiting: int = 1024
    waiting_each: int = 256

    @staticmethod
    def of(descriptors: int) -> Caps:
        """What fits a process that may have so many descriptors.

        >>> Caps.of(256)
        Caps(half_open=48, half_open_each=24, waiting=48, waiting_each=24)
        """
        share = max(4, (descriptors - reserve(descriptors)) // 4)
        usual = Caps()
        half_open, waiting = min(usual.half_open, share), min(usual.waiting, share)
        return Caps(
            half_open,
            min(usual.half_open_each, max(2, half_open // 2)),
            waiting,
            min(usual.waiting_each, max(2, waiting // 2)),
        )


class Door:
    """Who stands at one port. Connections are numbers of the caller's choice."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self._half: dict[str, dict[int, float]] = {}  # address -> connection -> since when, the oldest first
        self._half_count = 0
        self._where: dict[int, str] = {}  # of all that are not inside
        self._waiting: set[int] = set()
        self._waiting_at: Counter[str] = Counter()

    @property
    def half_open(self) -> int:
        return self._half_count

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def come(self, who: int, address: str, now: float, *, full: bool = False) -> int | None:
        """A connection is there; gives the one that must go for it (itself, perhaps), or None.

        Args:
            full: there are no descriptors to spare.
        """
        mine = self._half.get(address, {})
        victim = None
        if full and not self._half_count:
            return who
        if len(mine) >= self.caps.half_open_each:
            victim = next(iter(mine))
        elif full or self._half_count >= self.caps.half_open:
            victim = next(iter(self._half[max(self._half, key=self._crowd)]))
        if victim is not None:
            self.leave(victim)
        self._half.setdefault(address, {})[who] = now
        self._half_count += 1
        self._where[who] = address
        return victim

    def _crowd(self, address: str) -> int:
        return len(self._half[address])

    def opened(self, who: int) -> str:
        """It has opened a link; why it may not wait here, or nothing."""
        address = self._where[who]
        if len(self._waiting) >= self.caps.waiting:
            return f"a first message while {len(self._waiting)} others wait to be admitted"
        if self._waiting_at[address] >= self.caps.waiting_each:
            return f"a first message while {self._waiting_at[address]} others of its address wait to be admitted"
        self._no_longer_half_open(who, address)
        self._waiting.add(who)
        self._waiting_at[address] += 1
        return ""

    def admitted(self, who: int) -> None:
        """It is inside: from now on it is no business of the door's."""
        self.leave(who)

    def leave(self, who: int) -> None:
        """It is gone, in whatever state it was."""
        address = self._where.pop(who, None)
        if address is None:
            return
        self._no_longer_half_open(who, address)
        if who in self._waiting:
            self._waiting.discard(who)
            self._waiting_at[address] -= 1
            self._waiting_at += Counter()  # forgets addresses that nobody waits from

    def _no_longer_half_open(self, who: int, address: str) -> None:
        mine = self._half.get(address, {})
        if mine.pop(who, None) is not None:
            self._half_count -= 1
            if not mine:
                del self._half[address]

    def overdue(self, now: float) -> list[int]:
        """Those that have been half open for too long."""
        late = []
        for mine in self._half.values():
            for who, since in mine.items():
                if now - since < HANDSHAKE_SECONDS:
                    break  # the others came later
                late.append(who)
        return late
