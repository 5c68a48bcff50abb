"""Doing what the policy decides: leases out, gradients in, workers on their way, followers told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from evener.errors import NonFinite, ProtocolError
from evener.policy.events import (
    Apply,
    Decision,
    Drained,
    Drop,
    Event,
    Recall,
    Refreshed,
    Release,
    Wait,
)  # fmt: skip
from evener.policy.leases import Leases
from evener.policy.lives import Lives, Stage
from evener.policy.stretches import Stretches
from evener.server.ahead import Ahead
from evener.server.batches import entries, named, written
from evener.server.chief import Chief
from evener.server.counsel import Counsel
from evener.server.course import Course
from evener.server.decided import Decisions, Products
from evener.server.giving import Given, Giver, OneEach
from evener.server.kept import KeptText
from evener.server.links import Links, Seat
from evener.server.scripts import UNUSED, Scripts
from evener.server.shard import Shard
from evener.server.shared_scripts import SharedScripts
from evener.server.sharing import Sharing
from evener.server.timer import Timer
from evener.state import rules
from evener.wire.messages import Draw, Drawn, Key, Push, Released, TooBig

#: What an update of finite gradients that is not finite itself ends with.
Exploded = Callable[[NonFinite, Sequence[Push]], Exception]


class Rounds:
    """The policy and its hands. It knows seats and handles; who may have a seat is the leader's affair."""

    def __init__(self, links: Links, shard: Shard, course: Course, leases: Leases | Stretches) -> None:
        self.links, self.shard, self.course, self.leases = links, shard, course, leases
        self.ledger = course.setup.ledger
        settings = course.settings
        self.policy = settings.start(course.first_step)
        self.timer = Timer(course.setup.clock)
        self.chief = Chief(links, course, validates=not settings.script)
        self._outcome: dict[tuple[int, int], tuple[str, int]] = {}  # life -> (why dropped, staleness) of its last push
        self._decided = Decisions()
        self.products = Products()
        self.lives = Lives(settings.stall_timeout)
        self.counsel = Counsel(course, self.lives, self.policy)
        clock = course.setup.clock
        self.scripts: Scripts | SharedScripts | None = None
        self.sharing: Sharing | None = None
        self.giver: Giver
        if isinstance(leases, Stretches):
            kind = SharedScripts if settings.script else Sharing
            self.giver = self.sharing = kind(links, leases, self.lives, course, lambda: shard.state.step)
            self.scripts = self.sharing if isinstance(self.sharing, SharedScripts) else None
        elif settings.script:
            self.giver = self.scripts = Scripts(links, shard, leases, lives=self.lives, clock=clock, settings=settings)
        else:
            self.giver = OneEach(links, shard, leases, self.lives, clock)
        if not settings.script and (settings.batches > 1 or settings.terms.in_flight > 1):
            self.deal_ahead()
        self.kept = KeptText(course.setup.restored.script if course.setup.restored else "")

    def deal_ahead(self) -> None:
        """Workers may have several batches in hand. Before any of them has one."""
        clock, settings = self.course.setup.clock, self.course.settings
        assert isinstance(self.leases, Leases)
        self.giver = Ahead(self.links, self.shard, self.leases, lives=self.lives, clock=clock, settings=settings)

    def forget(self, seat: Seat, partial: Sequence[Key]) -> None:
        """A worker left: its leases return; its pushes that never lay on all shards are dropped everywhere."""
        self.giver.forget(seat)
        self.shard.state.ruled.forget(seat.worker)
        for key in partial:
            self._decided.drop.append(key)
            self.products.forget(key)
            for handle in [h for h, gradient in self.shard.held.items() if gradient.key == key]:
                for entry in entries(self.shard.drop(handle)):
                    self.ledger.drop(entry, "not on all shards when its worker left", back=False)
        self._decided.gone.append((seat.worker, seat.epoch))
        self.ledger.returned(seat.worker, seat.epoch, self.leases.leave((seat.worker, seat.epoch)))

    def decide(self, event: Event, exploded: Exploded) -> None:
        """Ask the policy and do what it says. `exploded`: what to raise for an update that is not finite."""
        self._do(self.policy.on(event), exploded)
        self.look(exploded)

    def look(self, exploded: Exploded) -> None:
        """Batches may have come back or run out: who waits for one, or for others who have none, goes on."""
        if self.scripts is not None:
            self.send_on([])
        while not self.course.stopping and not self.course.over(self.shard.state.step):
            idle = self.giver.drained()
            decisions = self.policy.on(Drained(idle)) if idle is not None else []
            if not decisions:
                return
            self._do(decisions, exploded)

    def _do(self, decisions: Iterable[Decision], exploded: Exploded) -> None:
        released = []
        for decision in decisions:
            match decision:
                case Apply(handles):
                    pushes = [self.shard.held[handle].push for handle in handles]
                    try:
                        self._apply(handles)
                    except NonFinite as error:
                        raise exploded(error, pushes) from error
                case Drop(handle, reason):
                    push = self.shard.held[handle].push
                    self.drop(handle, reason)
                    if delay := self.shard.state.step - push.version:
                        self.counsel.late(push.identity.worker, delay)
                case Recall(worker):
                    self.giver.recall(self.links.seats[worker])
                case Release(worker):
                    released.append(worker)
                case Wait():
                    self.timer.set(decision)
        self.send_on(released)

    def _apply(self, handles: tuple[int, ...]) -> None:
        if self._decided.apply:
            self.tell_followers()  # one message, one update
        version = self.shard.state.step
        factor = self._factor(handles)
        pushes = self.shard.apply(handles, factor)
        self._decided.factor = factor
        self.ledger.update(self.shard.state.step, [entry for push in pushes for entry in entries(push)])
        for push in pushes:
            worker, epoch = push.identity.worker, push.identity.epoch
            for lease in named(push):
                self.leases.finish(lease, (worker, epoch))
            staleness = version - push.version
            self.course.applied(push, staleness)
            self.counsel.applied(worker)
            self.products.forget((worker, epoch, push.seq))
            self._outcome[worker, epoch] = ("", staleness)
            self._decided.apply.append((worker, epoch, push.seq))
        self.course.moved(pushes[0].group)
        if self.course.tally.updates == 1:
            self.course.report(self.shard.state.step, "")
        if self.sharing is not None:
            self.sharing.applied(pushes)

    def _factor(self, handles: Sequence[int]) -> float | None:
        """What clipping by norm makes of the mean of these, where it lies on several shards."""
        limit, held = self.shard.state.recipe.clip_norm, [self.shard.held[handle] for handle in handles]
        if limit is None or self.course.settings.ps == 1:
            return None
        weights, _ = self.shard.weigh(held)
        return rules.clip_factor(self.products.norm([gradient.key for gradient in held], weights), limit)

    def judge(self, figures: Mapping[str, float]) -> None:
        """A validation was made: all shards take the schedule's step between the same two updates."""
        self.shard.state.judged(figures)
        self._decided.judged = dict(figures)

    def drop(self, handle: int, reason: str) -> None:
        """Forget a gradient; its batch goes back to the pool, its worker will be told why."""
        push = self.shard.drop(handle)
        worker, epoch = push.identity.worker, push.identity.epoch
        self.products.forget((worker, epoch, push.seq))
        for entry, lease in zip(entries(push), named(push) or [-1], strict=True):
            self.ledger.drop(entry, reason, back=self.leases.give_back(lease, (worker, epoch)))
        self.course.tally.dropped += 1
        self._outcome[worker, epoch] = (reason, self.shard.state.step - push.version)
        self._decided.drop.append((worker, epoch, push.seq))

    def refuse(self, handle: int, reason: str, *, close: bool) -> None:
        """This gradient must not become an update; its batch goes back to the pool, or is given up for good."""
        push = self.shard.held[handle].push
        owner = (push.identity.worker, push.identity.epoch)
        for lease, name in zip(named(push), written(push), strict=True) if close else []:
            if self.leases.close(lease, owner):
                self.ledger.skip(name, self.shard.state.step, reason)
        self.drop(handle, reason)
        self.send_on([owner[0]])

    def too_big(self, seat: Seat, told: TooBig) -> None:
        """A worker cannot compute what it was given. It goes back, and the worker gets less. Raises ProtocolError."""
        if self.sharing is None or not self.sharing.too_big(seat, told):
            raise ProtocolError(f"{seat.name} gives back samples that it does not have.")
        if self.course.stopping:
            self.answer(seat)
        else:
            self.policy.on(Refreshed(seat.worker))  # it has the newest parameters
            self.send_on([seat.worker])
        self.tell_followers()

    def waiting_for(self) -> str:
        waits = self.policy.waiting_for()
        return waits if self.sharing is None else self.sharing.waiting_for(waits)

    def outdated(self, version: int) -> bool:
        """Whether the policy drops what was computed on these parameters, whatever it is."""
        return self.policy.dooms(version)

    def send_on(self, workers: Sequence[int]) -> None:
        """These go on, and whoever waited for a batch that there is now."""
        if self.course.over(self.shard.state.step):
            return  # the run is over: `stop` answers them
        for given in self.giver.give(workers):
            self.course.gave_lease()
            if given.drawn:
                self.policy.on(Refreshed(given.seat.worker))
                given.seat.drawn = self.shard.state.step
                self.lives.move(given.seat.worker, Stage.COMPUTING, self._now(), given.lease)
                self._say_drawn(given.seat, given.leases, given.count)
            else:
                self.answer(given.seat, given)
            if self.scripts is not None and self.scripts.begins(given.seat):
                self.lives.freed(given.seat.worker)
        self._note_skipped()

    def draw(self, seat: Seat, draw: Draw) -> None:
        """A script asks for more batches. Raises ProtocolError where it may not."""
        assert self.scripts is not None
        if self.course.stopping:
            return self._say_drawn(seat, [])
        given = self.scripts.draw(seat, draw)
        for lease in self.scripts.closed():
            self.ledger.skip(lease, self.shard.state.step, UNUSED)
        self._note_skipped()
        if given is not None:
            if seat.drawn == self.shard.state.step:
                self.policy.on(Refreshed(seat.worker))
            self.lives.drew(seat.worker, self._now(), given.lease)
            self._say_drawn(seat, given.leases)

    def stopped(self) -> None:
        """The run is over: whoever waits is told. The others are when they come."""
        for seat in sorted(self.links.seats.values(), key=lambda seat: seat.worker):
            if seat.whole:  # else it is answered when its request has come to all shards
                self.answer(seat)
        for seat in self.scripts.stopped() if self.scripts is not None else []:
            self.lives.move(seat.worker, Stage.LEAVING, self._now())
            self._say_drawn(seat, [])

    def _say_drawn(self, seat: Seat, leases: list[int], count: int = 0) -> None:
        chief = seat.worker == self.chief.now() and (seat.was_chief or not self.course.succeeds(seat.worker))
        self.links.answer(seat.link, Drawn(
            leases, seat.version, stop=self.course.stopping, chief=chief, failed=self.course.failed,
            script=self.kept.owed(seat.worker, first=False, chief=chief), count=count,
        ))  # fmt: skip

    def taken(self, push: Push) -> str:
        """Why its batches are another's now, though its parameters are the newest; empty if they are its own."""
        return f"its batch {gone[0]} was given to another worker meanwhile" if (gone := self.giver.taken(push)) else ""

    def leave_out(self, leases: Iterable[int]) -> None:
        """A roll-back came of these: they are not given out."""
        for lease in leases:
            assert isinstance(self.leases, Leases), "samples cannot be left out by a number"
            self.leases.avoid(lease)
        self._note_skipped()

    def _note_skipped(self) -> None:
        for lease in self.leases.passed() if isinstance(self.leases, Leases) else ():
            self.ledger.skip(lease, self.shard.state.step, "left out by a roll-back")

    def answer(self, seat: Seat, given: Given | None = None) -> None:
        """Send a worker on, or tell it that the run has ended. The other shards answer it too."""
        rejected, staleness = self._outcome.pop((seat.worker, seat.epoch), ("", 0))
        self.shard.released(seat.worker)
        lease = given.lease if given is not None else -1
        chief = seat.worker == self.chief.now()
        answer = Released(
            seq=seat.awaits or 0, version=self.shard.state.step, lease=lease, stop=self.course.stopping, chief=chief,
            rejected=rejected, staleness=staleness,
            dropped=self.course.tally.dropped, learning_rate=self.shard.state.learning_rate,
            failed=self.course.failed, leases=given.leases if given is not None else [],
            script=self.kept.owed(seat.worker, first=seat.awaits == 0, chief=chief),
            count=given.count if given is not None else 0,
        )  # fmt: skip
        seat.awaits, seat.whole = None, False
        stage = Stage.LEAVING if self.course.stopping else Stage.COMPUTING
        self.lives.move(seat.worker, stage, self._now(), lease)
        self.links.release(seat, answer, self.shard.state.parameters.parts)
        self._decided.answered(seat.worker, seat.epoch, answer)

    def _now(self) -> float:
        return self.course.setup.clock()

    def tell_followers(self) -> None:
        """Everything decided since the last call, as one message."""
        message = self._decided.take(self.shard.state.step)
        if message is not None:
            for link in self.links.followers.values():
                self.links.answer(link, message)
