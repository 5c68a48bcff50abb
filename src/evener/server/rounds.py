"""Doing what the policy decides: leases out, gradients in, workers on their way, followers told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from evener.errors import NonFinite
from evener.policy import policy_for
from evener.policy.events import Apply, Drop, Event, Release as ReleaseDecision
from evener.policy.leases import Leases
from evener.policy.lives import Lives, Stage
from evener.server.course import Course
from evener.server.links import Links, Seat
from evener.server.shard import Shard
from evener.state import rules
from evener.wire.messages import Decided, Key, Push, Release

#: What an update of finite gradients that is not finite itself ends with.
Exploded = Callable[[NonFinite, Sequence[Push]], Exception]


class Rounds:
    """The policy and its hands. It knows seats and handles; who may have a seat is the leader's affair."""

    def __init__(self, links: Links, shard: Shard, course: Course, leases: Leases) -> None:
        self.links, self.shard, self.course, self.leases = links, shard, course, leases
        self.ledger = course.setup.ledger
        settings = course.settings
        self.policy = policy_for(
            settings.mode, replicas_to_aggregate=settings.aggregate, accumulate=settings.accumulate,
            elastic=settings.elastic, staleness=settings.ahead, version=course.first_step,
        )  # fmt: skip
        self.final_chief: int | None = None  # who evaluates at the end; -1: nobody
        self.vacant = False  # that one was lost, and nobody came yet who can do it
        self._parked: list[int] = []  # released, but no lease is left unless somebody leaves
        self._outcome: dict[tuple[int, int], tuple[str, int]] = {}  # life -> (why dropped, staleness) of its last push
        self._decided = Decisions()
        self.products = Products()
        self.lives = Lives(settings.stall_timeout)

    def forget(self, seat: Seat, partial: Sequence[Key]) -> None:
        """A worker left: its leases return; its pushes that never lay on all shards are dropped everywhere."""
        self._parked = [worker for worker in self._parked if worker != seat.worker]
        for key in partial:
            self._decided.drop.append(key)
            self.products.forget(key)
            for handle in [h for h, gradient in self.shard.held.items() if gradient.key == key]:
                push = self.shard.drop(handle)
                self.ledger.drop((push.lease, *key), "not on all shards when its worker left", back=False)
        self._decided.gone.append((seat.worker, seat.epoch))
        self.ledger.returned(seat.worker, seat.epoch, self.leases.leave((seat.worker, seat.epoch)))

    def lost(self, seat: Seat) -> None:
        """A worker is gone without a goodbye. If it was to evaluate at the end, whoever comes next does it."""
        if seat.worker == self.final_chief:
            self.final_chief, self.vacant = None, True
            self.course.wait_anew()

    @property
    def evaluating(self) -> bool:
        """Whether the chief is about the final evaluation."""
        return self.final_chief in self.links.seats

    def waiting_at_end(self) -> str:
        """For whom a run that is over waits still; empty: for nobody."""
        if self.evaluating:
            return f"worker:{self.final_chief} to evaluate the final parameters"
        if self.vacant:
            return "a worker to evaluate the final parameters, since the chief died before it had"
        seats = sorted(seat.name for seat in self.links.seats.values())
        return f"{', '.join(seats)} to say goodbye" if seats else ""

    def decide(self, event: Event, exploded: Exploded) -> None:
        """Ask the policy and do what it says. `exploded`: what to raise for an update that is not finite."""
        for decision in self.policy.on(event):
            match decision:
                case Apply(handles):
                    pushes = [self.shard.held[handle].push for handle in handles]
                    try:
                        self._apply(handles)
                    except NonFinite as error:
                        raise exploded(error, pushes) from error
                case Drop(handle, reason):
                    self.drop(handle, reason)
                case ReleaseDecision(worker):
                    self._release(worker)
        self._serve_parked()

    def _apply(self, handles: tuple[int, ...]) -> None:
        version = self.shard.state.step
        factor = self._factor(handles)
        pushes = self.shard.apply(handles, factor)
        self._decided.factor = factor
        self.ledger.update(
            self.shard.state.step, [(p.lease, p.identity.worker, p.identity.epoch, p.seq) for p in pushes]
        )
        for push in pushes:
            worker, epoch = push.identity.worker, push.identity.epoch
            self.leases.finish(push.lease, (worker, epoch))
            staleness = version - push.version
            self.course.applied(push, staleness)
            self.products.forget((worker, epoch, push.seq))
            self._outcome[worker, epoch] = ("", staleness)
            self._decided.apply.append((worker, epoch, push.seq))
        self.course.moved()
        if self.course.tally.updates == 1:
            self.course.report(self.shard.state.step, "")
        if self.course.settings.mode == "sync":
            # Who still computes on the old version will be dropped: its batches go back at once, so that a
            # straggler cannot hold them until the end of the run.
            held = {gradient.push.lease for gradient in self.shard.held.values()}
            for lease, owner in self.leases.outstanding().items():
                if lease not in held:
                    self.leases.give_back(lease, owner)

    def _factor(self, handles: Sequence[int]) -> float | None:
        """What clipping by norm makes of the mean of these, where it lies on several shards."""
        limit = self.shard.state.recipe.clip_norm
        if limit is None or self.course.settings.ps == 1:
            return None
        return rules.clip_factor(self.products.norm([self.shard.held[handle].key for handle in handles]), limit)

    def judge(self, figures: Mapping[str, float]) -> None:
        """A validation was made: all shards take the schedule's step between the same two updates."""
        self.shard.state.judged(figures)
        self._decided.judged = dict(figures)

    def drop(self, handle: int, reason: str) -> None:
        """Forget a gradient; its batch goes back to the pool, its worker will be told why."""
        push = self.shard.drop(handle)
        worker, epoch = push.identity.worker, push.identity.epoch
        self.products.forget((worker, epoch, push.seq))
        back = self.leases.give_back(push.lease, (worker, epoch))
        self.ledger.drop((push.lease, worker, epoch, push.seq), reason, back=back)
        self.course.tally.dropped += 1
        self._outcome[worker, epoch] = (reason, self.shard.state.step - push.version)
        self._decided.drop.append((worker, epoch, push.seq))

    def refuse(self, handle: int, reason: str, *, close: bool) -> None:
        """This gradient must not become an update; its batch goes back to the pool, or is given up for good."""
        push = self.shard.held[handle].push
        owner = (push.identity.worker, push.identity.epoch)
        if close and self.leases.close(push.lease, owner):
            self.ledger.skip(push.lease, self.shard.state.step, reason)
        self.drop(handle, reason)
        self._release(owner[0])
        self._serve_parked()

    def outdated(self, version: int) -> bool:
        """Whether the policy drops what was computed on these parameters, whatever it is."""
        return self.course.settings.mode == "sync" and version < self.policy.version

    def _release(self, worker: int) -> None:
        seat = self.links.seats.get(worker)
        if seat is None:
            return
        if self.course.over(self.shard.state.step):
            return  # the run is over: `stop` answers it
        lease = self.leases.take((seat.worker, seat.epoch))
        self._note_skipped()
        if lease is None:
            self._parked.append(worker)
            if self.lives.stage(worker) is not Stage.PARKED:
                self.lives.move(worker, Stage.PARKED, self._now())
        else:
            self.course.gave_lease()
            self.answer(seat, lease)

    def leave_out(self, leases: Iterable[int]) -> None:
        """A roll-back came of these: they are not given out."""
        for lease in leases:
            self.leases.avoid(lease)
        self._note_skipped()

    def _note_skipped(self) -> None:
        for lease in self.leases.passed():
            self.ledger.skip(lease, self.shard.state.step, "left out by a roll-back")

    def _serve_parked(self) -> None:
        """A lease came back from a worker that left: someone who had none gets it."""
        waiting, self._parked = self._parked, []
        for worker in waiting:
            self._release(worker)

    def answer(self, seat: Seat, lease: int = -1) -> None:
        """Send a worker on, or tell it that the run has ended. The other shards answer it too."""
        rejected, staleness = self._outcome.pop((seat.worker, seat.epoch), ("", 0))
        self.shard.detach(seat.worker)
        answer = Release(
            seq=seat.awaits or 0, version=self.shard.state.step, lease=lease, stop=self.course.stopping,
            chief=seat.worker == self._chief(), rejected=rejected, staleness=staleness,
            dropped=self.course.tally.dropped, learning_rate=self.shard.state.learning_rate,
            failed=self.course.failed,
        )  # fmt: skip
        seat.awaits, seat.whole = None, False
        stage = Stage.LEAVING if self.course.stopping else Stage.COMPUTING
        self.lives.move(seat.worker, stage, self._now(), lease)
        self.links.release(seat, answer, self.shard.state.parameters.parts)
        self._decided.release.append((seat.worker, seat.epoch, answer))

    def _now(self) -> float:
        return self.course.setup.clock()

    def _chief(self) -> int:
        """The live worker of lowest index; at the end the lowest that is here to evaluate, not one that hangs."""
        if not self.course.stopping:
            return min(self.links.seats)
        if self.final_chief is None:
            here = [seat.worker for seat in self.links.seats.values() if seat.whole]
            self.final_chief = min(here) if self.course.complete else -1
            self.vacant = False
        return self.final_chief

    def tell_followers(self) -> None:
        """Everything decided since the last call, as one message."""
        message = self._decided.take(self.shard.state.step)
        if message is not None:
            for link in self.links.followers.values():
                self.links.answer(link, message)


class Decisions:
    """Collects the decisions of one event; they travel as one message, in the leader's order."""

    def __init__(self) -> None:
        self.apply: list[Key] = []
        self.drop: list[Key] = []
        self.release: list[tuple[int, int, Release]] = []
        self.gone: list[tuple[int, int]] = []
        self.factor: float | None = None
        self.judged: dict[str, float] = {}

    def take(self, version: int) -> Decided | None:
        """The message, if there is anything to tell; collecting starts anew."""
        if not (self.apply or self.drop or self.release or self.gone or self.judged):
            return None
        message = Decided(version, self.apply, self.drop, self.release, self.gone, self.judged, self.factor)
        self.apply, self.drop, self.release, self.gone, self.judged, self.factor = [], [], [], [], {}, None
        return message


class Products:
    """Inner products of the gradients that are held, summed over the shards; empty where nothing is clipped by norm."""

    def __init__(self) -> None:
        self._known: dict[tuple[Key, Key], float] = {}

    def add(self, key: Key, products: Sequence[tuple[Key, float]]) -> None:
        """A shard's part of this gradient's products with others that it holds."""
        for other, number in products:
            pair = (min(key, other), max(key, other))
            self._known[pair] = self._known.get(pair, 0.0) + number

    def length(self, key: Key) -> float:
        """The norm of one gradient; 0.0 where it is not measured."""
        return math.sqrt(self._known.get((key, key), 0.0))

    def norm(self, keys: Sequence[Key]) -> float:
        """The norm of the mean of these gradients, which are forgotten."""
        pairs = (self._known[min(one, other), max(one, other)] for one in keys for other in keys)
        norm = rules.norm_of_mean(pairs, len(keys))
        for key in keys:
            self.forget(key)
        return norm

    def forget(self, key: Key) -> None:
        """This gradient was applied, or will not be."""
        self._known = {pair: number for pair, number in self._known.items() if key not in pair}
