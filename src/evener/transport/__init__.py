"""How bytes travel: one seam (`channel`), three carriers behind it.

`memory` joins threads of one process (for tests), `shared` joins processes of one host by mapped memory and words on
a UNIX socket, `tcp` joins hosts. A server says which kind it listens with; whoever connects finds the kind in the
address: "memory:1", "shared:evener-5f0c", "tcp://10.0.0.4:2222". Nothing but this package knows sockets.

Between hosts a link has keys (`keys`); within one the kernel says who the other end is.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from evener.errors import ConfigError
from evener.transport.channel import Channel, Listener, Ranges

if TYPE_CHECKING:
    from evener.transport.keys import Keys

#: kind -> how its addresses begin, and its module (imported when it is first used: `evener --help` needs none).
TRANSPORTS = {
    "memory": ("memory:", "evener.transport.memory"),
    "shared": ("shared:", "evener.transport.shared"),
    "tcp": ("tcp://", "evener.transport.tcp"),
}


class Transport(Protocol):
    """What each module of `TRANSPORTS` offers."""

    def listen(self, address: str) -> Listener: ...

    def connect(self, address: str, outbox: Ranges, inbox: Ranges, *, timeout: float) -> Channel: ...


@runtime_checkable
class KnowsUsers(Protocol):
    """A listener whose peers have proven a key."""

    def user(self, peer: int) -> str: ...


def user(listener: Listener, peer: int) -> str:
    """The task whose key a peer has proven ("worker-1"); nothing on links without keys. Raises PeerGone."""
    return listener.user(peer) if isinstance(listener, KnowsUsers) else ""


def listen(
    kind: str, address: str = "", *, keys: Keys | None = None, insecure: bool = False, heartbeat: float = 6.0
) -> Listener:
    """Listen with one kind of transport, by default at an address that is free (then published by `Listener.address`).

    Args:
        kind: one of `TRANSPORTS`.
        address: where, in the words of that transport.
        keys: between hosts: let only tasks of this cluster in. Within one host the kernel vouches for its peers.
        insecure: between hosts: listen beyond this machine without keys.
        heartbeat: between hosts: after so many seconds of silence a peer counts as gone.

    Raises:
        ConfigError: there is no such kind, or the address is not one of its addresses.
        SecurityError: other machines would reach the address, and nobody would ask them for a key.
        BindError: the address is taken, or not of this host.
    """
    if kind not in TRANSPORTS:
        raise ConfigError(f"unknown transport '{kind}'.", fix=f"choose one of {', '.join(TRANSPORTS)}.")
    prefix, module = TRANSPORTS[kind]
    if address and not address.startswith(prefix):
        raise ConfigError(
            f"'{address}' is not an address of the transport '{kind}'.", fix=f"write '{prefix}...', or leave it out."
        )
    if kind == "tcp":
        from evener.transport import tcp

        return tcp.listen(address, keys=keys, insecure=insecure, heartbeat=heartbeat)
    return _load(module).listen(address)


def connect(  # noqa: PLR0913 - what a link is made of, each once
    address: str,
    outbox: Ranges,
    inbox: Ranges,
    *,
    timeout: float = 10.0,
    absent: float = math.inf,
    keys: Keys | None = None,
    server: str = "ps-0",
    heartbeat: float = 6.0,
) -> Channel:
    """Connect to the listener at `address`, trying for up to `timeout` seconds: the server may start later than we do.

    It gives up after `absent` seconds if nobody listens there: whoever does may have moved.

    Within one host it returns without waiting for the server to notice, between hosts when the server has said who it
    is; one that does not want this link closes it (PeerGone at `receive`). Between hosts `keys` say who we are, and
    that `server` is the task which must answer; a host that is silent for `heartbeat` seconds counts as gone.

    Raises:
        ConfigError: the address belongs to no transport, or the ranges cannot be a payload.
        SecurityError: the keys do not include that of `server`.
        AuthError: it refused our key or did not prove its own, or one end has keys and the other none.
        Unavailable: nobody answered there in time.
    """
    for kind, (prefix, module) in TRANSPORTS.items():
        if address.startswith(prefix):
            if kind == "tcp":
                from evener.transport import tcp

                return tcp.connect(
                    address, outbox, inbox,
                    timeout=timeout, absent=absent, keys=keys, server=server, heartbeat=heartbeat,
                )  # fmt: skip
            return _load(module).connect(address, outbox, inbox, timeout=min(timeout, absent))
    raise ConfigError(
        f"'{address}' is not an address of any transport.",
        fix=f"addresses begin with {', '.join(prefix for prefix, _ in TRANSPORTS.values())}.",
    )


def _load(module: str) -> Transport:
    return cast(Transport, importlib.import_module(module))
