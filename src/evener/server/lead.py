"""What shard 0 does: it knows who belongs, brings whole gradients to the policy, and ends and saves the run."""

from __future__ import annotations

import logging

from evener import chaos, errors
from evener.policy.events import Left
from evener.policy.leases import Leases
from evener.policy.lives import Stage
from evener.policy.members import Members
from evener.report import Line
from evener.server.books import book_of, set_limit
from evener.server.course import Course, Setup
from evener.server.kept import KeptText
from evener.server.links import Link, Links, Seat
from evener.server.pushes import Pushes
from evener.server.rounds import Rounds
from evener.server.saves import Saves
from evener.server.shard import Shard
from evener.state.atomic import FileRecord
from evener.state.contents import Contents
from evener.state.saver import begin
from evener.wire import codec
from evener.wire.messages import (
    AnyMessage,
    Draw,
    Follow,
    Goodbye,
    Granted,
    Halt,
    Held,
    Hello,
    Join,
    Judged,
    Lead,
    Leaving,
    Lost,
    Pull,
    Pulled,
    Push,
    Saved,
    TooBig,
)  # fmt: skip
from evener.wire.words import Identity

log = logging.getLogger(__name__)

#: So many lives lost over one batch are no accident.
SUSPICIOUS = 3


class Leader:
    """Shard 0. `handle`, `gone` and `tick` are called by the loop, never at once. `contents`: what it goes on from."""

    def __init__(self, links: Links, shard: Shard, setup: Setup, contents: Contents | None = None) -> None:
        self.links, self.shard, self.setup, self._contents = links, shard, setup, contents
        self.settings = setup.settings
        self.course = Course(setup)
        shard.state.step = self.course.first_step  # the first worker's Hello restores the rest
        manifest = setup.restored
        seqs = {int(worker): seq for worker, seq in manifest.seqs.items()} if manifest else {}
        self.members = Members(generation=setup.generation, epochs=setup.epochs, holders=setup.holders, seqs=seqs)
        self.leases = book_of(manifest, self.settings)
        self.rounds = Rounds(links, shard, self.course, self.leases)
        self.lives = self.rounds.lives
        self.saves = Saves(links, shard, self.rounds, self.members)
        self.pushes = Pushes(links, shard, self.members, self.rounds, self.saves)
        self.whole, self.guard, self.ending = self.pushes.whole, self.pushes.guard, self.pushes.ending

    @property
    def done(self) -> bool:
        return self.ending.done

    @property
    def saving(self) -> bool:
        return self.setup.saver.busy

    sources = ()  # all that it hears comes from links

    def hear(self) -> None: ...

    def pause(self) -> float:
        """Until the policy is to be asked again."""
        return self.rounds.timer.left()

    # --- messages

    def handle(self, link: Link, message: AnyMessage) -> None:
        """One message. Raises WireError to refuse it; any other error ends the run."""
        if self.ending.leaving and not isinstance(message, Saved):
            return  # whoever asks now is told when this generation ends, and asks the next one
        match message:
            case Hello():
                self._hello(link, message)
            case Follow():
                self._follow(link, message)
            case Held(shard, worker, epoch, seq, products, bad) if 0 < shard == link.follower:
                known = [((other, life, number), value) for other, life, number, value in products]
                self.guard.note((worker, epoch, seq), bad)
                self.pushes.held((worker, epoch, seq), shard, known)
            case Lost(shard, worker, epoch, reason) if 0 < shard == link.follower:
                seat = self.links.seats.get(worker)
                if seat is not None and seat.epoch == epoch:
                    self._lose(seat, f"to ps:{shard}, {reason}")
            case Leaving(shard, reason) if 0 < shard == link.follower:
                self.leave(reason)
            case Saved(shard, _, files, values, error) if 0 < shard == link.follower:
                self.setup.saver.add(shard, {name: FileRecord(*file) for name, file in files.items()}, values, error)
            case Join() | Push() | Draw() | TooBig() | Pull() | Goodbye() | Halt() | Judged():
                self._from_worker(self.links.seat_of(link, message.identity), message)
            case _:
                raise errors.ProtocolError(f"{link.description} sent a {type(message).__name__} to the leading ps.")

    def _hello(self, link: Link, hello: Hello) -> None:
        others = [self.links.check(hello, link, workers=self.settings.workers), self.course.check(hello)]
        worker = hello.identity.worker
        old = self.links.seats.get(worker)
        epoch = self.links.grant(hello, self.members)
        self.links.accept_payloads(link)  # the last that may refuse it: nothing was changed so far
        self.setup.keep_grants(dict(self.members.epochs), dict(self.members.holders))
        chaos.point("server.granting")
        self._start(hello)
        if old is not None:
            self._leave(old)
        seat = self.links.admit(link, hello, epoch)
        self.lives.admit(worker, epoch, self.setup.clock())
        self.links.answer(link, Granted(Identity(worker, epoch, self.setup.generation)))
        for difference in filter(None, others):
            self._tell(f"warning: {difference}")
        log.info("%s joined: pid %d on %s, epoch %d", seat.name, seat.pid, seat.host, epoch)
        if hello.identity.epoch:
            self._tell(f"{seat.name} is back (epoch {epoch})")

    def _start(self, hello: Hello) -> None:
        """The first worker knows how much data there is; the schedule and the end of the run follow from it."""
        if not self.course.begin(hello):
            return
        self.settings, samples = self.course.settings, hello.samples
        first, last = self.course.first_step, self.course.train_steps or 0
        script = bool(self.settings.script)
        self.setup.ledger.begin(first, samples, self.leases.state(), script=script, loader=hello.batches)
        if hello.batches or (hello.ahead and self.settings.ahead):
            self.rounds.deal_ahead()
        if isinstance(self.leases, Leases):
            set_limit(self.leases, self.settings, samples, last - first)
        elif self.rounds.sharing is not None:
            self.rounds.sharing.begin(samples)
        self.rounds.counsel.begin()
        self.rounds.leave_out(self.setup.without)
        restored = (self.setup.restored, self._contents) if self.setup.restored and self._contents else None
        self._contents = None  # as large as the state, which takes it over
        for difference in begin(self.shard.state, restored, self.settings, samples):
            self._tell(f"warning: {difference}")
        if self.course.over(first) or (self.settings.ends_by_samples and self.leases.exhausted):
            end = f" of {self.course.length}" if self.course.length else ""
            self.stop(f"already at step {first}{end}: nothing to do")

    def _from_worker(self, seat: Seat, message: Join | Push | Draw | TooBig | Pull | Goodbye | Halt | Judged) -> None:
        match message:
            case Join(_, want):
                if seat.joined or seat.awaits is not None:
                    raise errors.ProtocolError(f"{seat.name} joined twice.")
                seat.awaits = 0
                self.rounds.giver.joins(seat, want)
                self.course.came.add(seat.worker)
                self.course.left.discard(seat.worker)
                self.lives.move(seat.worker, Stage.WAITING, self.setup.clock())
                if self.whole.held((seat.worker, seat.epoch, 0), 0):
                    self.pushes.joined(seat)
            case Push():
                self.pushes.push(seat, message)
            case Draw() if self.settings.script:
                self.pushes.draw(seat, message)
            case Draw():
                raise errors.ProtocolError(f"{seat.name} draws batches, as the workers of a recipe do not.")
            case TooBig():
                self.rounds.too_big(seat, message)
            case Pull(_, what):
                self.lives.shown(seat.worker, self.setup.clock())
                parts = self.shard.parts(what, seat.slot, seat.worker)
                self.links.answer(seat.link, Pulled(what, self.shard.state.step), parts)
            case Judged(_, figures):
                self.rounds.judge(figures)
                self.rounds.tell_followers()
            case Halt(_, reason, complete):
                self.stop(codec.cut(reason, codec.MAX_SENTENCE), complete=complete)
            case Goodbye():
                self._goodbye(seat, message)

    def _goodbye(self, seat: Seat, goodbye: Goodbye) -> None:
        reason = codec.cut(goodbye.reason, codec.MAX_SENTENCE)  # all others are told, in one message each
        if reason and not self.course.stopping:  # else it tells us our own reason
            self._tell(f"{seat.name} {'failed' if goodbye.failed else 'leaves'}: {reason}")
        if reason.startswith(errors.Preempted.__name__):
            self.rounds.chief.lost(seat)  # if it was to validate, somebody else has to
        if goodbye.script and seat.worker == min(self.links.seats) and self.settings.script:
            KeptText.check(goodbye)
            self.rounds.kept.take(goodbye, self.links.seats)
        self._leave(seat, ended=bool(self.settings.script) and not reason and not goodbye.failed)
        if goodbye.failed:
            self.stop(f"{seat.name} failed: {reason.rstrip('.')}", complete=False, failed=True)

    # --- coming and going

    def _follow(self, link: Link, message: Follow) -> None:
        self.links.check_follower(message, link)
        link.listener.admit(link.peer, [])
        link.follower = message.shard
        self.links.followers[message.shard] = link
        self.links.answer(link, Lead(self.setup.generation, self.course.first_step))

    def gone(self, link: Link) -> None:
        """A link broke. Without a follower's shard there is no model: raises ServerLost."""
        if link.follower and not self.ending.can_do_without(link.follower):
            raise errors.ServerLost(f"ps:{link.follower} is gone ({link.description}: {link.ended}).")
        if link.seat is not None:
            self._lose(link.seat, link.ended)

    def _lose(self, seat: Seat, reason: str) -> None:
        leases = sum(owner == (seat.worker, seat.epoch) for owner in self.leases.outstanding().values())
        returns = ("", "; 1 lease returns", "; 2 leases return")[leases] if leases <= 2 else ""
        self._tell(f"{seat.name} is gone ({seat.link.description}: {reason}){returns}")
        self.rounds.chief.lost(seat)
        self._leave(seat)

    def _leave(self, seat: Seat, *, ended: bool = False) -> None:
        if ended and seat.worker in self.course.came:
            self.course.left.add(seat.worker)
        self.links.dismiss(seat)
        lost = self.lives.gone(seat.worker)
        if lost >= SUSPICIOUS:
            self._tell(f"warning: {lost} workers were lost one after the other over the same batch")
        self.guard.forget(seat.worker, seat.epoch)
        self.rounds.forget(seat, self.whole.forget(seat.worker, seat.epoch))
        if seat.joined and not self.course.stopping:
            self.pushes.decide(Left(seat.worker, ended))
        else:
            self.rounds.tell_followers()
        if not self.links.seats and self.course.loops_over(just_now=ended):
            self.leases.unbegin()
            self.stop("every worker has left its loop")

    def stop(self, reason: str, *, complete: bool = True, failed: bool = False) -> None:
        """End the run after the update in hand: whoever waits is told, the state is saved."""
        self.ending.stop(reason, complete=complete, failed=failed)

    def leave(self, reason: str) -> None:
        """A ps task was told to leave: save, then end this generation."""
        self.ending.leave(reason)

    def _recall(self) -> None:
        """A lease that takes too long goes to somebody else; what its worker says later is of a life that has ended."""
        if self.course.stopping or self.settings.terms.needs_all:
            return  # lockstep needs that very worker: it waits, aloud
        now = self.setup.clock()
        for life in self.lives.overdue(now):
            seat = self.links.seats[life.worker]
            self._lose(seat, f"it has not given lease {life.lease} for {now - life.since:.0f} s")

    def _tell(self, text: str) -> None:
        log.warning("%s", text)
        self.setup.report(Line("ps:0", text))

    def tick(self) -> None:
        """Called between messages, at least every 0.2 s."""
        self.saves.poll()
        self.rounds.counsel.tick()
        if (expired := self.rounds.timer.expired()) and not self.course.stopping:
            self.pushes.decide(expired)
        if not self.ending.leaving:
            self._recall()
            self.saves.begin_if_due()
        self.course.watch(self.shard.state.step, self.waiting_for, patient=self.lives.at_leisure())
        self.ending.tick()

    def waiting_for(self) -> str:
        """One sentence: what must happen before the run moves on. Empty while it moves."""
        if self.ending.leaving:
            return f"the checkpoint after which {self.ending.leaving.partition(' ')[0]} leaves"
        if self.course.stopping:
            return self.ending.waiting_for()
        if absent := sorted(set(range(1, self.settings.ps)) - set(self.links.followers)):
            return ", ".join(f"ps:{shard}" for shard in absent) + " to follow ps:0"
        if not self.links.seats:
            absent = sorted(set(range(self.settings.workers)) - self.course.left)
            return ", ".join(f"worker:{worker}" for worker in absent) + " to join"
        scripts = self.rounds.scripts
        if scripts is not None and scripts.idle:
            return scripts.finishing(self.lives.waiting_for(self.setup.clock()))
        waits = self.whole.waiting_for() or self.rounds.waiting_for()
        return waits or (self.lives.waiting_for(self.setup.clock()) if self.course.still() else "")

    def rescue(self) -> None:
        """The run fails: save what was reached, if that can be."""
        self.ending.rescue()

    def close(self) -> None:
        self.ending.close()
