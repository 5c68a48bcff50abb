"""Who is connected to this server: strangers, workers that were admitted (seats), and followers."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from evener import errors
from evener.policy.members import Members
from evener.server.agreement import Expected, compare
from evener.state.tensors import Slot
from evener.transport import user
from evener.transport.channel import Arrived, Closed, Complaints, Incoming, Listener, Opened, Source, wait
from evener.wire import codec
from evener.wire.layout import Layout
from evener.wire.messages import AnyMessage, Follow, Hello, Push, Released
from evener.wire.standing import Pong
from evener.wire.words import Identity

#: A link on which so many messages were refused is cut: whoever is there does not listen.
MAX_REFUSALS = 8


@dataclass(slots=True, eq=False)
class Link:
    """One connection. It has a `seat` once a worker was admitted on it."""

    listener: Listener
    peer: int
    description: str
    seat: Seat | None = None
    follower: int = 0  # the shard of a following server
    ended: str = ""  # why the connection is gone, once it is
    refusals: int = 0


@dataclass(slots=True, eq=False)
class Seat:
    """One life of one worker, on its link."""

    worker: int
    epoch: int
    link: Link
    host: str = ""
    pid: int = 0
    joined: bool = False  # the policy knows it
    awaits: int | None = None  # seq of the request it waits on; None while it computes
    whole: bool = False  # that request lies on every shard
    answer: Released | None = None  # the last one, for a repeated request
    before: int = -1  # of the parameters that it had before those of that one
    drawn: int = 0  # the version that it was told to look at since, with batches of another epoch
    inbox: list[memoryview] = field(default_factory=list)  # the peer's, when it last pushed,
    slot: Slot | None = None  # and the gradient in it

    @property
    def name(self) -> str:
        return f"worker:{self.worker}"

    @property
    def was_chief(self) -> bool:
        """What its last release said."""
        return self.answer is not None and self.answer.chief

    def may_push(self, push: Push, *, in_flight: int = 1) -> bool:
        """Is it this worker's turn, and the gradient the one that its last release asked for?

        Args:
            in_flight: 2: it may have begun to compute it before that release came, on the parameters of the one before.
        """
        asked = self.answer
        if asked is None or asked.stop or not self.joined or self.awaits is not None:
            return False
        if push.count and push.count != push.examples:
            return False
        versions = (asked.version, self.before)[:in_flight]
        return push.version in versions and (push.lease, push.count) == (asked.lease, asked.count)

    def its_turn(self) -> bool:
        """Whether nothing of it is to be answered, and it was answered once. A script goes on after the run's end."""
        return self.answer is not None and self.joined and self.awaits is None

    @property
    def version(self) -> int:
        """Of the parameters that it has."""
        return max(self.answer.version if self.answer is not None else 0, self.drawn)


class Links:
    """The connections of one server, over all its listeners."""

    def __init__(self, listeners: Sequence[Listener], layout: Layout, shard: int, expected: Expected) -> None:
        self.listeners = list(listeners)
        self.seats: dict[int, Seat] = {}
        self.followers: dict[int, Link] = {}
        self._layout = layout
        self._shard = shard
        self._expected = expected
        self._links: dict[tuple[int, int], Link] = {}
        self._unread: tuple[Listener, deque[Incoming]] = (listeners[0], deque())
        self._hopeless: list[Link] = []
        self._complaints = Complaints(logging.getLogger(__name__))

    def poll(
        self, sources: Sequence[Source], timeout: float
    ) -> Iterator[tuple[Source, Link | None, AnyMessage | None]]:
        """What has come in: a link with its message, a link that closed (None), or another source that is ready."""
        for source in wait([*self.listeners, *sources], timeout):
            if source not in self.listeners:
                yield source, None, None
                continue
            listener = next(one for one in self.listeners if one is source)
            self._unread = (listener, deque(listener.receive()))
            while self._unread[1]:
                match self._unread[1].popleft():
                    case Opened(peer, description):
                        self._links[id(listener), peer] = Link(listener, peer, description)
                    case Closed(peer, reason):
                        if link := self._links.pop((id(listener), peer), None):
                            link.ended = reason
                            yield source, link, None
                    case Arrived(peer, header, payload):
                        link = self._links.get((id(listener), peer))
                        if link is not None and (message := self._decode(link, header, payload)) is not None:
                            yield source, link, message
            while self._hopeless:  # refused once too often: gone, as if its connection had broken
                link = self._hopeless.pop()
                if self._links.pop((id(link.listener), link.peer), None) is not None:
                    link.listener.disconnect(link.peer)
                    yield source, link, None

    def _decode(self, link: Link, header: bytes, payload: bool) -> AnyMessage | None:
        try:
            message = codec.decode(header)
            if isinstance(message, Push) and link.seat is not None and not payload:
                raise errors.ProtocolError(f"{link.description} sent a push without a gradient.")
        except errors.WireError as error:
            self.refuse(link, error)
            return None
        return message

    def seat_of(self, link: Link, identity: Identity) -> Seat:
        """The seat of a link, if its message is from its worker in its present life. Raises ProtocolError."""
        seat = link.seat
        if seat is None or (seat.worker, seat.epoch) != (identity.worker, identity.epoch):
            raise errors.ProtocolError(f"{link.description} speaks as worker:{identity.worker} without a Hello.")
        return seat

    def check(self, hello: Hello, link: Link, *, workers: int) -> str:
        """Raise the error that tells a stranger why it does not belong to a run of so many workers.

        Returns a difference that is allowed, as a sentence; empty if there is none.
        """
        name, mine = f"worker:{hello.identity.worker}", f"ps:{self._shard}"
        self._check_link(link, name)
        self._check_run(hello.run, name)
        if hello.identity.worker >= workers:
            raise errors.ClusterMismatch(
                f"{name} asked to join, but this run has {workers} workers (0..{workers - 1}).",
                fix="start every task with the same number of workers.",
            )
        return compare(hello, self._expected, self._layout, mine)

    def check_follower(self, follow: Follow, link: Link) -> None:
        """Raise the error that tells a server why it may not follow."""
        name, mine = f"ps:{follow.shard}", f"ps:{self._shard}"
        self._check_link(link, name)
        self._check_run(follow.run, name)
        if not 0 < follow.shard < self._layout.shards:
            raise errors.ProtocolError(f"{name} wants to follow, but there are {self._layout.shards} ps tasks.")
        if follow.layout != self._layout.fingerprint:
            raise errors.ModelMismatch(
                f"{name} places tensors as {follow.layout}, {mine} as {self._layout.fingerprint}.",
                why="every task must build the same model.",
                fix="start all tasks with the same recipe, options and number of ps tasks.",
            )
        if follow.shard in self.followers:
            raise errors.DuplicateTask(f"{name} follows already.", fix="stop the other process.")

    def _check_link(self, link: Link, name: str) -> None:
        """One link is one task for life, and between hosts the task whose key the peer has proven."""
        if link.seat is not None or link.follower:
            raise errors.ProtocolError(f"{link.description} says who it is again, now {name}.")
        proven = user(link.listener, link.peer)
        if proven and proven != name.replace(":", "-"):
            raise errors.AuthError(
                f"this key may act as {proven.replace('-', ':')}, not as {name}.",
                why="each task has a key of its own, so that none can speak as another.",
                fix=f"start {name} with {name.replace(':', '-')}.secret.",
            )

    def _check_run(self, run: str, name: str) -> None:
        if run != self._expected.run:
            raise errors.ClusterMismatch(
                f"ps:{self._shard} belongs to run {self._expected.run!r}, {name} to {run!r}.",
                why="it was started with other host lists, or the address is that of another run.",
                fix="give all tasks the same lists of hosts, in the same order.",
            )

    def grant(self, hello: Hello, members: Members) -> int:
        """The epoch of a worker that asks to come in.

        Raises:
            DuplicateTask, Fenced: somebody else has its index, and that is named here.
        """
        worker = hello.identity.worker
        seat = self.seats.get(worker)
        where = f"{seat.host} pid {seat.pid}" if seat is not None else ""
        try:
            return members.grant(worker, hello.identity.epoch, alive=seat is not None, process=hello.process)
        except errors.DuplicateTask as error:
            raise errors.DuplicateTask(f"worker:{worker} is already running at {where}.", fix=error.fix) from None
        except errors.Fenced as error:
            what = error.what.rstrip(".") + (f"; the newer one is at {where}." if where else ".")
            raise errors.Fenced(what, why=error.why, fix=error.fix) from None

    def accept_payloads(self, link: Link) -> None:
        """From now on this peer may push. Raises ProtocolError when its payloads have other sizes than our shard."""
        link.listener.admit(link.peer, [nbytes for _, nbytes in self._layout.ranges(self._shard)])

    def admit(self, link: Link, hello: Hello, epoch: int) -> Seat:
        """Give a checked worker its seat; an older life of it loses its own."""
        self.accept_payloads(link)
        if old := self.seats.get(hello.identity.worker):
            self.dismiss(old)
        seat = Seat(hello.identity.worker, epoch, link, hello.host, hello.pid)
        link.seat = self.seats[seat.worker] = seat
        return seat

    def gradient(self, seat: Seat) -> Slot:
        """What a worker has just pushed, where its transport has put it."""
        inbox = seat.link.listener.inbox(seat.link.peer)
        if seat.slot is None or inbox is not seat.inbox:
            seat.inbox, seat.slot = inbox, Slot(self._layout, self._shard, inbox)
        return seat.slot

    def release(self, seat: Seat, answer: Released, parameters: Sequence[memoryview]) -> None:
        """Answer a push. Memory that its transport has let go of is kept for the chief, who may ask to see it."""
        if seat.answer is not None and seat.answer is not answer:
            seat.before = seat.version
        seat.answer = answer
        sent = self.answer(seat.link, answer, parameters)
        if sent and not answer.chief and seat.link.listener.inbox(seat.link.peer) is not seat.inbox:
            seat.inbox, seat.slot = [], None

    def dismiss(self, seat: Seat) -> None:
        """Forget a worker and close its link."""
        if self.seats.get(seat.worker) is seat:
            del self.seats[seat.worker]
        seat.link.seat = None
        self._links.pop((id(seat.link.listener), seat.link.peer), None)
        seat.link.listener.disconnect(seat.link.peer)

    def pong(self, step: int) -> Pong:
        """Who we are, for a peer that asks before any Hello."""
        expected = self._expected
        name = f"ps:{self._shard}"
        return Pong(name, expected.evener, False, expected.run, expected.recipe, step, sorted(self.seats))

    def answer(self, link: Link, message: AnyMessage, payload: Sequence[memoryview] = ()) -> bool:
        """Send; False when the peer is gone (its `Closed` will come)."""
        try:
            link.listener.send(link.peer, codec.encode(message), payload)
        except errors.PeerGone:
            return False
        return True

    def refuse(self, link: Link, error: errors.EvenerError) -> None:
        """Tell a peer what it did wrong; its first refusal is logged. One that goes on and on is cut off."""
        link.refusals += 1
        if link.refusals == 1:
            self._complaints.say(f"refused {link.description}: {codec.cut(error.what, 300)}")
        if link.refusals == MAX_REFUSALS:
            self._hopeless.append(link)
        self.tell(link, error)

    def tell(self, link: Link, error: errors.EvenerError) -> None:
        """An error as an answer. The link stays open: closing it could overtake the words."""
        with contextlib.suppress(errors.PeerGone):
            link.listener.send(link.peer, codec.encode(codec.refusal(error)))

    def close(self) -> None:
        """Hang up on everybody. The listeners stay: whoever made them closes them, or serves anew.

        Also on those whose arrival nobody has looked at, because an error came first: they would wait for ever.
        """
        listener, unread = self._unread
        for incoming in unread:
            if isinstance(incoming, Opened):
                listener.disconnect(incoming.peer)
        unread.clear()
        for link in list(self._links.values()):
            link.listener.disconnect(link.peer)
        self._links.clear()
        self.seats.clear()
        self.followers.clear()
