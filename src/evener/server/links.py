"""Who is connected to this server: strangers, workers that were admitted (seats), and followers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evener import errors
from evener.tensors import Slot
from evener.transport.channel import Arrived, Closed, Listener, Opened, Source, wait
from evener.wire import codec
from evener.wire.layout import Layout
from evener.wire.messages import AnyMessage, Follow, Hello, Release

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a peer must agree on."""

    run: str
    recipe: str
    evener: str


@dataclass(slots=True, eq=False)
class Link:
    """One connection. It has a `seat` once a worker was admitted on it."""

    listener: Listener
    peer: int
    description: str
    seat: Seat | None = None
    follower: int = 0  # the shard of a following server


@dataclass(slots=True, eq=False)
class Seat:
    """One life of one worker, on its link."""

    worker: int
    epoch: int
    link: Link
    slot: Slot
    host: str = ""
    pid: int = 0
    joined: bool = False  # the policy knows it
    awaits: int | None = None  # seq of the request it waits on; None while it computes
    whole: bool = False  # that request lies on every shard
    answer: Release | None = None  # the last one, for a repeated request

    @property
    def name(self) -> str:
        return f"worker:{self.worker}"


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

    def poll(
        self, sources: Sequence[Source], timeout: float
    ) -> Iterator[tuple[Source, Link | None, AnyMessage | None]]:
        """What has come in: a link with its message, a link that closed (None), or another source that is ready."""
        for source in wait([*self.listeners, *sources], timeout):
            if source not in self.listeners:
                yield source, None, None
                continue
            listener = next(one for one in self.listeners if one is source)
            for incoming in listener.receive():
                match incoming:
                    case Opened(peer, description):
                        self._links[id(listener), peer] = Link(listener, peer, description)
                    case Closed(peer, _):
                        if link := self._links.pop((id(listener), peer), None):
                            yield source, link, None
                    case Arrived(peer, header, _):
                        link = self._links.get((id(listener), peer))
                        if link is not None and (message := self._decode(link, header)) is not None:
                            yield source, link, message

    def _decode(self, link: Link, header: bytes) -> AnyMessage | None:
        try:
            return codec.decode(header)
        except errors.WireError as error:
            log.warning("%s: %s", link.description, error.what)
            self.refuse(link, error)
            return None

    def check(self, hello: Hello, link: Link) -> None:
        """Raise the error that tells a stranger why it does not belong."""
        name, mine = f"worker:{hello.identity.worker}", f"ps:{self._shard}"
        self._check_run(hello.run, name)
        if hello.evener != self._expected.evener:
            raise errors.VersionError(
                f"{name} runs evener {hello.evener}, {mine} runs {self._expected.evener}.",
                fix="install the same evener everywhere.",
            )
        if hello.layout != self._layout.fingerprint:
            difference = self._layout.difference(codec.unpack_specs(hello.specs), here=mine, there=name)
            raise errors.ModelMismatch(
                difference or f"{name} places tensors as {hello.layout}, {mine} as {self._layout.fingerprint}.",
                why="every task must build the same model.",
                fix="start all tasks with the same recipe, options and number of ps tasks.",
            )
        if hello.recipe != self._expected.recipe:
            raise errors.ModelMismatch(
                f"{name} trains {hello.recipe!r}, {mine} trains {self._expected.recipe!r}.",
                why="recipe, options, seed and frozen parameters must be equal on every task.",
                fix="start all tasks with the same recipe and options.",
            )

    def check_follower(self, follow: Follow) -> None:
        """Raise the error that tells a server why it may not follow."""
        name, mine = f"ps:{follow.shard}", f"ps:{self._shard}"
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

    def _check_run(self, run: str, name: str) -> None:
        if run != self._expected.run:
            raise errors.ClusterMismatch(
                f"ps:{self._shard} belongs to run {self._expected.run!r}, {name} to {run!r}.",
                fix="check the address that this task was given.",
            )

    def admit(self, link: Link, hello: Hello, epoch: int) -> Seat:
        """Give a checked worker its seat; an older life of it loses its own."""
        if old := self.seats.get(hello.identity.worker):
            self.dismiss(old)
        link.listener.admit(link.peer, [nbytes for _, nbytes in self._layout.ranges(self._shard)])
        slot = Slot(self._layout, self._shard, link.listener.inbox(link.peer))
        seat = Seat(hello.identity.worker, epoch, link, slot, hello.host, hello.pid)
        link.seat = self.seats[seat.worker] = seat
        return seat

    def dismiss(self, seat: Seat) -> None:
        """Forget a worker and close its link."""
        if self.seats.get(seat.worker) is seat:
            del self.seats[seat.worker]
        seat.link.seat = None
        self._links.pop((id(seat.link.listener), seat.link.peer), None)
        seat.link.listener.disconnect(seat.link.peer)

    def answer(self, link: Link, message: AnyMessage, payload: Sequence[memoryview] = ()) -> bool:
        """Send; False when the peer is gone (its `Closed` will come)."""
        try:
            link.listener.send(link.peer, codec.encode(message), payload)
        except errors.PeerGone:
            return False
        return True

    def refuse(self, link: Link, error: errors.EvenerError) -> None:
        """Tell a peer what it did wrong. The link stays open: closing it could overtake the words."""
        with contextlib.suppress(errors.PeerGone):
            link.listener.send(link.peer, codec.encode(codec.refusal(error)))

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
