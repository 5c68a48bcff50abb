"""The loop of a ps task: the only place where links, shard and policy meet time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from evener import errors
from evener.server.links import Link, Links
from evener.server.shard import Shard
from evener.transport.channel import Source
from evener.wire.messages import AnyMessage
from evener.wire.standing import Ping

#: Seconds between two ticks: waiting, and while requests come one after the other, where each tick would delay one.
TICK, BUSY_TICK = 0.1, 0.02


def never() -> str:
    return ""


class Server(Protocol):
    """A ps task's hands: shard 0, which decides, or another one, which follows. Called by the loop, never at once."""

    links: Links
    shard: Shard

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        ...

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written: then it ticks between all messages, so that the next one can begin."""
        ...

    @property
    def sources(self) -> Sequence[Source]:
        """Where more comes in than workers' requests."""
        ...

    def hear(self) -> None:
        """Something came in there."""
        ...

    def handle(self, link: Link, message: AnyMessage) -> None:
        """One message. Raises WireError to refuse it; any other error ends the run."""
        ...

    def gone(self, link: Link) -> None:
        """A link broke."""
        ...

    def pause(self) -> float:
        """Seconds for which it may be left alone, if nothing comes in."""
        ...

    def tick(self) -> None:
        """Called between messages, not between all of them."""
        ...

    def stop(self, reason: str, *, complete: bool = True) -> None:
        """This task was told to end the run."""
        ...

    def leave(self, reason: str) -> None:
        """This task was told to leave."""
        ...

    def rescue(self) -> None:
        """The run fails: save what was reached, if that can be."""
        ...

    def close(self) -> None:
        """Nothing comes after this."""
        ...


def serve(
    server: Server,
    stop_asked: Callable[[], str] = never,
    leave_asked: Callable[[], str] = never,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Serve until the run is over, until `stop_asked` gives a reason to end it early, or `leave_asked` one to leave it.

    An error that a peer caused is told to that peer and forgotten here; any other error ends the run, after every
    peer was told why.

    Raises:
        ServerLost: another ps task is gone, or this one leaves. Peers are told which, and come back for a new
            generation.
    """
    due, owed = -math.inf, False  # when the next tick may be, and whether something was done since the last one
    try:
        while not server.done:
            patience = due - clock() if owed else TICK
            owed = once(server, max(0.0, min(patience, server.pause())))
            if reason := stop_asked():
                server.stop(reason, complete=False)
            elif reason := leave_asked():
                server.leave(reason)
            if not owed or server.saving or clock() >= due or server.pause() <= 0:
                server.tick()
                due, owed = clock() + BUSY_TICK, False
    except errors.ServerLost as loss:
        _tell_peers(server, loss)  # else they would take the one that closes their links for the one that is gone
        raise
    except Exception as error:
        _tell_peers(server, errors.TaskFailed(f"the run ended because a ps task failed: {error}".splitlines()[0]))
        if isinstance(error, errors.EvenerError):
            server.rescue()  # our own errors are raised before anything is changed
        raise
    finally:
        server.links.close()
        server.close()


def once(server: Server, timeout: float) -> bool:
    """Do what has come in; wait up to `timeout` seconds for the first of it. False: nothing came."""
    came = False
    for _, link, message in server.links.poll(list(server.sources), timeout):
        if link is not None:
            _guarded(server, link, message)
        else:
            server.hear()
        server.shard.state.settle()
        came = True
    return came


def _guarded(server: Server, link: Link, message: AnyMessage | None) -> None:
    try:
        if message is None:
            server.gone(link)
        elif isinstance(message, Ping):
            server.links.answer(link, server.links.pong(server.shard.state.step))
        else:
            server.handle(link, message)
    except errors.PeerGone:
        pass  # this peer went while it was served; its `Closed` comes
    except errors.WireError as error:
        server.links.refuse(link, error)


def _tell_peers(server: Server, error: errors.EvenerError) -> None:
    links = [seat.link for seat in server.links.seats.values()] + list(server.links.followers.values())
    for link in links:
        server.links.tell(link, error)
