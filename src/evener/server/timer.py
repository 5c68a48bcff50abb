"""The time that a policy has asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

from evener.policy.events import Expired, Wait


class Timer:
    """One at a time: a policy looks at its newest token only.

    Args:
        clock: seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._token, self._due = 0, math.inf

    def set(self, wait: Wait) -> None:
        """Count from now."""
        self._token, self._due = wait.token, self._clock() + wait.seconds

    def left(self) -> float:
        """Seconds until the time is over, not below 0; without end where none runs."""
        return max(0.0, self._due - self._clock())

    def expired(self) -> Expired | None:
        """What to tell the policy, once."""
        if self._due > self._clock():
            return None
        self._due = math.inf
        return Expired(self._token)
