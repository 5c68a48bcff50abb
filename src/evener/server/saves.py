"""When shard 0 has a checkpoint written: one cut through all shards, noted in the ledger."""

from __future__ import annotations

import logging

from evener import errors
from evener.policy.members import Members
from evener.server.links import Links
from evener.server.rounds import Rounds
from evener.server.shard import Shard
from evener.state.saver import manifest_of
from evener.wire.messages import Save

log = logging.getLogger(__name__)

#: Seconds between two tries of the final save: somebody may be making room.
AGAIN = 1.0


class Saves:
    """Begins saves between two updates; the saver's thread and the followers write them."""

    def __init__(self, links: Links, shard: Shard, rounds: Rounds, members: Members) -> None:
        self._links, self._shard, self._course = links, shard, rounds.course
        course = rounds.course
        self._leases, self._members, self._kept = rounds.leases, members, rounds.kept
        self._saver, self._ledger = course.setup.saver, course.setup.ledger
        self._next = 0.0  # when the final save may be tried again
        self._tried = -1  # the step that was saved because somebody leaves

    def poll(self) -> None:
        """Notice a save that is complete."""
        if self._saver.poll():
            self._ledger.complete()
            log.info("checkpoint saved: %s", self._saver.newest)

    def begin_if_due(self) -> None:
        course = self._course
        if not course.stopping and course.train_steps and self._saver.due(self._shard.state.step):
            self._begin()

    def begin_final(self) -> bool:
        """Begin the final save, or wait to try it again, unless this step is saved.

        Raises:
            CheckpointError: it has failed for so long that the run ends without it.
        """
        if self._course.train_steps is None or self._saver.saved(self._shard.state.step):
            return False
        now = self._course.setup.clock()
        if self._saver.failure is not None and not self._saver.made_room:
            if self._course.late():
                raise errors.not_saved(self._saver.failure)
            if now < self._next:
                return True
        self._next = now + AGAIN
        self._begin()
        return True

    def begin_once(self) -> bool:
        """Begin to save this step, unless it is saved or that was tried: who was told to leave does not wait for it."""
        step = self._shard.state.step
        if self._course.train_steps is None or self._saver.saved(step) or self._tried == step:
            return False
        self._tried = step
        self._begin()
        return True

    def outcome(self) -> str:
        """What has become of the newest state, for people."""
        step = self._shard.state.step
        if self._course.train_steps is None:
            return "nothing was trained yet"
        return f"step {step} is saved" if self._saver.saved(step) else f"step {step} could not be saved"

    def end_ledger(self) -> None:
        self._ledger.end(self._shard.state.step, self._course.stopping, self._leases.state())

    def _begin(self) -> None:
        state, course = self._shard.state, self._course
        contents, book = state.contents(), self._leases.state()
        manifest = manifest_of(
            contents, state, book=book, seqs=self._members.seqs, settings=course.settings,
            samples=course.samples,
            evener=course.setup.evener, examples=course.tally.examples, dropped=course.tally.dropped,
            script=self._kept.text, counted=course.counted if course.settings.script else 0,
        )  # fmt: skip
        self._ledger.cut(contents.step, book)
        self._saver.start(contents, manifest)
        for link in self._links.followers.values():
            self._links.answer(link, Save(contents.step))
