"""A run of so many workers or more: while fewer live, nobody is sent on, and people are told."""

from __future__ import annotations

from evener.policy.events import Decision, Event, Joined, Left, Policy, Recall, Refreshed, Release
from evener.policy.members import names


class Enough:
    """Any policy, whose workers wait while fewer than `least` of them live.

    What is being computed then is still used; only the next `Release` is withheld. Whoever was withheld goes on at the
    newest parameters, as one who was idle (`Refreshed`). A worker whose loop has ended counts as if it were here: a
    program's last worker must not wait for those who have finished.

    Args:
        rule: the policy of the mode.
        least: live workers without whom nobody goes on, from 1.

    >>> from evener.policy.asynchronous import Asynchronous
    >>> policy = Enough(Asynchronous(), 2)
    >>> policy.on(Joined(0)), policy.waiting_for()
    ([], 'waits for 2 workers: only worker 0 is here, start another worker')
    >>> policy.on(Joined(1))
    [Release(worker=0), Release(worker=1)]
    """

    def __init__(self, rule: Policy, least: int) -> None:
        self.rule, self.least, self.version = rule, least, rule.version
        #: As `Collecting` has it: people are told how late a gradient may be.
        self.delay: float = getattr(rule, "delay", 1)
        self._live: set[int] = set()
        self._ended: set[int] = set()  # workers whose loops have ended
        self._withheld: set[int] = set()  # the rule has released them

    def on(self, event: Event) -> list[Decision]:
        """Answer one event."""
        match event:
            case Joined(worker):
                self._live.add(worker)
                self._ended.discard(worker)
            case Left(worker, ended):
                self._live.discard(worker)
                self._withheld.discard(worker)
                if ended:
                    self._ended.add(worker)
        decisions = [one for one in self.rule.on(event) if not self._is_idle(one)]
        self.version = self.rule.version
        released = {one.worker for one in decisions if isinstance(one, Release)}
        others: list[Decision] = [one for one in decisions if not isinstance(one, Release)]
        if self._short:
            self._withheld |= released
            return others
        return self._freed(released) if self._withheld else decisions

    def dooms(self, version: int) -> bool:
        """As the rule says."""
        return self.rule.dooms(version)

    def waiting_for(self) -> str:
        """How many workers are missing; else what the rule waits for."""
        if not self._short:
            return self.rule.waiting_for()
        are = "is" if len(self._live) == 1 else "are"
        here = f"only {names(self._live)} {are} here" if self._live else "none is here"
        missing = self.least - len(self._live) - len(self._ended)
        more = "another worker" if missing == 1 else f"{missing} more workers"
        return f"waits for {self.least} workers: {here}, start {more}"

    @property
    def _short(self) -> bool:
        return len(self._live) + len(self._ended) < self.least

    def _is_idle(self, decision: Decision) -> bool:
        """A worker that was not sent on computes nothing that could be recalled."""
        return isinstance(decision, Recall) and decision.worker in self._withheld

    def _freed(self, released: set[int]) -> list[Decision]:
        """One has joined, which is answered by releases alone: all go on, with the newest parameters."""
        freed, self._withheld = sorted(self._withheld), set()
        for worker in freed:
            self.rule.on(Refreshed(worker))
        return [Release(worker) for worker in sorted(released.union(freed))]
