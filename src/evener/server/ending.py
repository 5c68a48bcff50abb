"""How the leader's part ends: the run is over or stopped early, or it hands over to the next life of the servers."""

from __future__ import annotations

import contextlib
import logging

from evener import chaos, errors
from evener.errors import NonFinite
from evener.report import Line
from evener.server.links import Links
from evener.server.rounds import Rounds
from evener.server.saves import Saves
from evener.server.shard import Shard
from evener.wire.messages import RunOver

log = logging.getLogger(__name__)


class Ending:
    """The leader's last things. It decides nothing about gradients; `Leader` asks it at each tick."""

    def __init__(self, links: Links, shard: Shard, rounds: Rounds, saves: Saves) -> None:
        self._links, self._shard, self._rounds, self._saves = links, shard, rounds, saves
        self._course = rounds.course
        self._setup = rounds.course.setup
        self.done = False
        self.failure: NonFinite | None = None  # why the run ends, if it is no worker's error
        self.leaving = ""  # why this generation ends while the run goes on
        self._told = False  # that others are expected

    def stop(self, reason: str, *, complete: bool, failed: bool) -> None:
        """End the run after the update in hand: whoever waits is told, the state is saved."""
        if self._course.stopping or self.leaving:
            if not complete and not failed:  # a person has asked for it
                self._course.hurry()
            return
        self._course.stop(reason, complete=complete, failed=failed)
        chaos.point("server.draining")
        self._rounds.stopped()
        self._rounds.tell_followers()
        if not self._setup.saver.busy:
            self._saves.begin_final()

    def fail(self, failure: NonFinite) -> None:
        """End the run because of this; the state is whole, so it is saved first."""
        self.failure = self.failure or failure
        self.stop(failure.what.rstrip("."), complete=False, failed=True)

    def leave(self, reason: str) -> None:
        """A ps task was told to leave. No update is made any more; the state is saved, then this generation ends.

        Gradients that come now are not lost updates: they were not applied, and their leases go out again.
        """
        if self._course.stopping or self.leaving:
            self._course.hurry()
            return
        self.leaving = reason
        chaos.point("server.leaving")
        self._setup.report(Line("ps:0", f"{reason}; step {self._shard.state.step} is being saved, the others wait"))

    def tick(self) -> None:
        """Raises ServerLost when this generation has ended: everything is saved, all begin the next one."""
        if self.leaving:
            self._hand_over()
        elif self._course.stopping:
            self._end_if_possible()

    def _hand_over(self) -> None:
        if self._setup.saver.busy or self._saves.begin_once():
            return
        saved = self._saves.outcome()
        raise errors.ServerLost(f"{self.leaving}; {saved}.")

    def _end_if_possible(self) -> None:
        if self._rounds.chief.waiting_at_end() and not self._course.late(evaluating=self._rounds.chief.evaluating):
            return
        for seat in list(self._links.seats.values()):
            log.warning("%s did not say goodbye in time; the run ends without it", seat.name)
            self._links.dismiss(seat)
        if self._setup.saver.busy or self._saves.begin_final():
            return
        if self._expects_others():
            return
        chaos.point("server.ending")
        for link in self._links.followers.values():
            self._links.answer(link, RunOver(self._course.stopping, self._course.failed))
        chaos.point("server.ended")
        self.done = True
        self._saves.end_ledger()
        self._course.finish(self._shard.state.step)

    def _expects_others(self) -> bool:
        """Workers that come now are told that the run is over."""
        names = self._course.expected()
        if names:
            self._course.wait_anew()  # each has its time to say goodbye
        if names and not self._told:
            self._told = True
            they = f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} not come yet"
            until = f"until {self._setup.latecomers:g} s after the first worker came"
            self._setup.report(Line("ps:0", f"the run is over and saved; {they}, so it stays {until}; Ctrl-C ends it"))
        return bool(names)

    def waiting_for(self) -> str:
        """For whom a run that is over waits still, or for what."""
        if waits := self._rounds.chief.waiting_at_end():
            return waits
        expected = self._course.expected() if self._told else []
        return f"{', '.join(expected)} to come" if expected else "the final checkpoint"

    def can_do_without(self, follower: int) -> bool:
        """Whether all is saved, so that nothing is lost with this shard that is gone. Nobody else is expected then."""
        if self._told:
            self._links.followers.pop(follower, None)
            self._course.hurry()
        return self.done or self._told

    def rescue(self) -> None:
        """The run fails: save what was reached, if this shard alone can (the others may be gone)."""
        if self._course.tally.updates and not self._links.followers and not self._setup.saver.busy:
            with contextlib.suppress(errors.CheckpointError):
                self._saves.begin_final()

    def close(self) -> None:
        self._setup.saver.close()
        self._setup.ledger.close()
