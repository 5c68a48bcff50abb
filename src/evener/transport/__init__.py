"""How bytes travel: one seam (`channel`), three carriers behind it.

`memory` joins threads of one process (for tests), `shared` joins processes of one host by mapped memory and words on
a UNIX socket, `zeromq` joins hosts. A server says which kind it listens with; whoever connects finds the kind in the
address: "memory:1", "shared:evener-5f0c", "tcp://10.0.0.4:2222". Nothing but this package knows ZeroMQ.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from evener.errors import ConfigError
from evener.transport.channel import Channel, Listener, Ranges

#: kind -> how its addresses begin, and its module (imported when it is first used: `evener --help` needs no ZeroMQ).
TRANSPORTS = {
    "memory": ("memory:", "evener.transport.memory"),
    "shared": ("shared:", "evener.transport.shared"),
    "zeromq": ("tcp://", "evener.transport.zeromq"),
}


class Transport(Protocol):
    """What each module of `TRANSPORTS` offers."""

    def listen(self, address: str) -> Listener: ...

    def connect(self, address: str, outbox: Ranges, inbox: Ranges, *, timeout: float) -> Channel: ...


def listen(kind: str, address: str = "") -> Listener:
    """Listen with one kind of transport, by default at an address that is free (then published by `Listener.address`).

    Raises:
        ConfigError: there is no such kind, or the address is not one of its addresses.
        BindError: the address is taken, or not of this host.
    """
    if kind not in TRANSPORTS:
        raise ConfigError(f"unknown transport '{kind}'.", fix=f"choose one of {', '.join(TRANSPORTS)}.")
    prefix, module = TRANSPORTS[kind]
    if address and not address.startswith(prefix):
        raise ConfigError(
            f"'{address}' is not an address of the transport '{kind}'.", fix=f"write '{prefix}...', or leave it out."
        )
    return _load(module).listen(address)


def connect(address: str, outbox: Ranges, inbox: Ranges, *, timeout: float = 10.0) -> Channel:
    """Connect to the listener at `address`, trying for up to `timeout` seconds: the server may start later than we do.

    Returns without waiting for the server to notice; one that refuses us closes the link (PeerGone at `receive`).

    Raises:
        ConfigError: the address belongs to no transport, or the ranges cannot be a payload.
        Unavailable: nobody answered there in time.
    """
    for prefix, module in TRANSPORTS.values():
        if address.startswith(prefix):
            return _load(module).connect(address, outbox, inbox, timeout=timeout)
    raise ConfigError(
        f"'{address}' is not an address of any transport.",
        fix=f"addresses begin with {', '.join(prefix for prefix, _ in TRANSPORTS.values())}.",
    )


def _load(module: str) -> Transport:
    return cast(Transport, importlib.import_module(module))
