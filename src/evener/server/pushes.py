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
from evener.server.links import Links, Seat
from evener.server.rounds import Rounds
from evener.server.saves import Saves
from evener.server.shard import Shard
from evener.wire.messages import Key, Push


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
        if not seat.may_push(push):
            raise errors.ProtocolError(f"{seat.name} pushed out of turn: version {push.version}, seq {push.seq}.")
        gradient = self.links.gradient(seat)
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
        if self.course.stopping:
            self.rounds.answer(seat)
            self.rounds.tell_followers()
        else:
            seat.joined = True
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
            self.rounds.tell_followers()
        else:
            self.decide(Pushed(seat.worker, version, handle))

    def decide(self, event: Event) -> None:
        """Let the policy answer an event, then see whether the run is over or a checkpoint is due."""
        if self.ending.leaving:
            return
        before = self.shard.state.step
        self.rounds.decide(event, self.guard.exploded)
        if self.shard.state.step > before:
            self.guard.applied()
        if self.course.over(self.shard.state.step) and not self.course.stopping:
            self.ending.stop(f"reached step {self.course.train_steps}", complete=True, failed=False)
        self.rounds.tell_followers()
        self.saves.begin_if_due()
