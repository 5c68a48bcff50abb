"""What becomes of a gradient at shard 0: taken up once, whole on all shards, looked at, and given to the policy."""

from __future__ import annotations

from collections.abc import Sequence

from evener import errors
from evener.policy.events import Event, Joined, Pushed
from evener.policy.follow import Whole
from evener.policy.lives import Stage
from evener.policy.members import Members, Verdict
from evener.server.ending import Ending
from evener.server.guard import Guard
from evener.server.kept import KeptText
from evener.server.links import Links, Seat
from evener.server.rounds import Rounds
from evener.server.saves import Saves
from evener.server.shard import Shard
from evener.wire.messages import Draw, Key, Push


class Pushes:
    """The way of a push, from its arrival to the policy's decision."""

    def __init__(self, links: Links, shard: Shard, members: Members, rounds: Rounds, saves: Saves) -> None:
        self.links, self.shard, self.members, self.rounds, self.saves = links, shard, members, rounds, saves
        self.course = rounds.course
        self.whole = Whole(self.course.settings.ps)
        self.guard = Guard(shard, rounds, self.course)
        self.ending = Ending(links, shard, rounds, saves)

    def push(self, seat: Seat, push: Push) -> None:
        verdict = self.members.check(seat.worker, seat.epoch, push.identity.generation, push.seq)
        if verdict is Verdict.DUPLICATE:
            if seat.answer is not None and seat.answer.seq == push.seq:
                self.links.release(seat, seat.answer, self.shard.state.parameters.parts)
            return
        if verdict is Verdict.STALE:
            old, now = push.identity.generation, self.members.generation
            raise errors.PushRejected(f"{seat.name} pushed a gradient of generation {old}; the servers are at {now}.")
        if wrong := self.rounds.giver.refuses(seat, push):
            raise errors.ProtocolError(f"{seat.name} {wrong}.")
        KeptText.check(push)
        self.shard.remember(push)
        gradient = self.links.gradient(seat)
        self.rounds.giver.pushed(seat, push)
        if push.script and seat.worker == self.rounds.chief.now():
            self.rounds.kept.take(push, self.links.seats)
        seat.awaits = push.seq
        self.rounds.lives.move(seat.worker, Stage.HELD, self.course.setup.clock())
        self.members.record(seat.worker, seat.epoch, push.seq)
        handle = self.shard.hold(push, gradient)
        self.rounds.products.add((seat.worker, seat.epoch, push.seq), self.shard.products(handle))
        if self.whole.held((seat.worker, seat.epoch, push.seq), 0):
            self._whole_push(seat, push.version, handle)

    def held(self, key: Key, shard: int, products: Sequence[tuple[Key, float]]) -> None:
        """A follower holds this request too."""
        worker, epoch, seq = key
        seat = self.links.seats.get(worker)
        if seat is None or seat.epoch != epoch:
            return  # of a life that ended meanwhile: the follower was told so
        self.rounds.products.add(key, products)
        if not self.whole.held(key, shard):
            return
        if seq == 0:
            self.joined(seat)
        else:
            handle = next(h for h, gradient in self.shard.held.items() if gradient.key == key)
            self._whole_push(seat, self.shard.held[handle].push.version, handle)

    def joined(self, seat: Seat) -> None:
        seat.whole = True
        seat.joined = not self.course.stopping or bool(self.course.settings.script)  # a script goes on after the end
        if self.course.stopping:
            self.rounds.answer(seat)
            self.rounds.tell_followers()
        else:
            self.decide(Joined(seat.worker))

    def _whole_push(self, seat: Seat, version: int, handle: int) -> None:
        seat.whole = True
        if self.course.stopping:
            self.rounds.drop(handle, self.course.stopping)
            self.rounds.answer(seat)
            self.rounds.tell_followers()
        elif (wrong := self.guard.wrong(handle)) and not self.rounds.outdated(version):
            if failure := self.guard.refuse(handle, wrong):
                self.ending.fail(failure)
            self._after_refusal()
        elif not self.rounds.outdated(version) and (lost := self.rounds.taken(self.shard.held[handle].push)):
            self.rounds.refuse(handle, lost, close=False)
            self._after_refusal()
        else:
            push = self.shard.held[handle].push
            self.decide(Pushed(seat.worker, version, handle, push.group, push.examples))

    def _after_refusal(self) -> None:
        if self.course.settings.script:
            self.decide(None)  # its batches are there for those who wait
        else:
            self.rounds.tell_followers()

    def draw(self, seat: Seat, draw: Draw) -> None:
        """A script asks for more batches. Raises ProtocolError where it may not."""
        self.rounds.draw(seat, draw)
        if not self.course.stopping:
            self.decide(None)

    def decide(self, event: Event | None) -> None:
        """Let the policy answer an event, then see whether the run is over or a checkpoint is due.

        Args:
            event: None: of batches alone.
        """
        if self.ending.leaving:
            return
        before = self.shard.state.step
        if event is not None:
            self.rounds.decide(event, self.guard.exploded)
        elif not self.course.stopping:
            self.rounds.look(self.guard.exploded)
        if self.shard.state.step > before:
            self.guard.applied()
        if self.course.over(self.shard.state.step) and not self.course.stopping:
            self.ending.stop(f"reached step {self.course.train_steps}", complete=True, failed=False)
        elif self.course.settings.ends_by_samples and self.rounds.leases.exhausted and not self.course.stopping:
            epochs = self.course.settings.epochs or 0
            reason = f"all batches of {epochs:g} epoch{'' if epochs == 1 else 's'} are applied"
            self.ending.stop(reason, complete=True, failed=False)
        self.rounds.tell_followers()
        self.saves.begin_if_due()
