"""What people are told of a mode: what it means at the start, who works for nothing, and when another uses more."""

from __future__ import annotations

from dataclasses import fields

from evener.modes import Sync
from evener.policy.contributions import Contributions, nothing
from evener.policy.events import Policy
from evener.policy.lives import Lives
from evener.report import Line
from evener.server.course import Course
from evener.simulate.advice import advice

#: Leases that are known of each worker, before anything is said of its speed; of updates, when it is looked at.
KNOWN, FIRST, TIMES = 8, 100, 10


class Counsel:
    """Looks at what became of gradients, and at the times of leases. It changes nothing."""

    def __init__(self, course: Course, lives: Lives, policy: Policy) -> None:
        self._course, self._lives, self._policy = course, lives, policy
        self._contributions = Contributions()
        self._next = FIRST  # updates at which it looks at speeds
        self._said = ""

    def begin(self) -> None:
        """The run begins."""
        settings = self._course.settings
        for sentence in settings.mode.told(settings.workers, settings.batch_size):
            self._tell(sentence)

    def applied(self, worker: int) -> None:
        """A gradient of this worker was used."""
        self._contributions.applied(worker)

    def late(self, worker: int, delay: int) -> None:
        """A gradient of this worker was dropped for its age, in updates."""
        if self._contributions.dropped(worker, delay):
            may_raise = any(entry.name == "max_delay" for entry in fields(self._course.settings.mode))  # type: ignore[arg-type]  # see policy/mode.py
            limit = float(getattr(self._policy, "delay", 1))
            self._tell(nothing(worker, delay, limit, may_raise=may_raise))

    def tick(self) -> None:
        """Now and then: how much of its workers the mode uses."""
        if self._course.tally.updates < self._next or self._course.stopping or self._course.settings.by_samples:
            return  # of batches of other sizes other times are no news
        times = self._lives.times()
        if any(len(seconds) < KNOWN for seconds in times.values()):
            return
        self._next = TIMES * self._course.tally.updates
        mode = self._course.settings.mode
        said = advice(mode, times, by_speed=isinstance(mode, Sync) and self._course.unit != "batches")
        if said and said.split(";")[-1] != self._said:  # the same advice, with other figures, is told once
            self._said = said.split(";")[-1]
            self._tell(said)

    def _tell(self, text: str) -> None:
        self._course.setup.report(Line("ps:0", text))
