"""Who evaluates: the live worker of lowest index, and at the end one that is here to do it."""

from __future__ import annotations

from evener.server.course import Course
from evener.server.links import Links, Seat


class Chief:
    """Who is chief now, and for whom a run that is over waits.

    Args:
        validates: at the end of the run; a script does so in its own loop.
    """

    def __init__(self, links: Links, course: Course, *, validates: bool) -> None:
        self._links, self._course, self._validates = links, course, validates
        self.final: int | None = None  # who evaluates at the end; -1: nobody
        self._vacant = False  # that one was lost, and nobody came yet who can do it

    def now(self) -> int:
        """The live worker of lowest index; at the end the lowest that is here to evaluate, not one that hangs."""
        if not self._course.stopping:
            return min(self._links.seats)
        if self.final is None:
            here = [seat.worker for seat in self._links.seats.values() if seat.whole]
            self.final = min(here) if self._course.complete and self._validates else -1
            self._vacant = False
        return self.final

    def lost(self, seat: Seat) -> None:
        """A worker is gone without a goodbye. If it was to evaluate at the end, whoever comes next does it."""
        if seat.worker == self.final:
            self.final, self._vacant = None, True
            self._course.wait_anew()

    @property
    def evaluating(self) -> bool:
        """Whether the chief is about the final evaluation."""
        return self.final in self._links.seats

    def waiting_at_end(self) -> str:
        """For whom a run that is over waits still; empty: for nobody."""
        if self.evaluating:
            return f"worker:{self.final} to evaluate the final parameters"
        if self._vacant:
            return "a worker to evaluate the final parameters, since the chief died before it had"
        seats = sorted(seat.name for seat in self._links.seats.values())
        return f"{', '.join(seats)} to say goodbye" if seats else ""
