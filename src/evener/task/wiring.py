"""By which transports, at which addresses and with which keys the tasks of a run reach each other."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from evener import errors, transport
from evener.settings import Settings
from evener.transport import keys
from evener.transport.channel import Channel, Listener, Ranges

#: Seconds at a port where nobody listens; of a name of this machine the kernel knows at once.
ABSENT = 0.2
#: Seconds that a ps of this machine may take from its port to its shared memory; a worker elsewhere waits so long once.
BESIDE = 0.1


def same_host(run: str, shard: int, address: str) -> str:
    """Where a ps task that listens at tcp://HOST:PORT also listens for tasks of its own machine and user.

    A name, not a port: nobody else can reach it, the kernel vouches for the user (RELIABILITY section 5), and tensors
    go through shared memory. The port keeps apart two runs of one machine that were told the same cluster.
    """
    return f"shared:evener-{run}-ps-{shard}-{address.rpartition(':')[2]}"


def public_address(settings: Settings, shard: int, listener: Listener) -> str:
    """The address of a ps task as others should write it: the host that the user named, the port that was found."""
    if not settings.ps_hosts or not listener.address.startswith("tcp:"):
        return listener.address
    host = settings.ps_hosts[shard].rpartition(":")[0]
    return f"tcp://{host}:{listener.address.rpartition(':')[2]}"


def listen(settings: Settings, shard: int, run: str) -> list[Listener]:
    """The listeners of a ps task; the first one's address is the one to publish.

    Raises:
        BindError: the address is taken, or not of this host.
        SecurityError: other machines would reach it, and there are no keys.
    """
    if settings.transport != "tcp" and not settings.ps_hosts:
        return [transport.listen("shared")]
    mine = keys.load(settings.keys, f"ps-{shard}") if settings.keys else None
    address = f"tcp://{settings.ps_hosts[shard]}" if settings.ps_hosts else ""
    if settings.transport == "shared":
        return [transport.listen("shared", same_host(run, shard, address))]
    listeners = [
        transport.listen(
            "tcp", address, keys=mine, insecure=settings.insecure, heartbeat=settings.heartbeat_timeout
        )
    ]  # fmt: skip
    if settings.transport == "auto":
        try:
            listeners.append(transport.listen("shared", same_host(run, shard, listeners[0].address)))
        except errors.BindError:
            listeners[0].close()
            raise
    return listeners


@dataclass(frozen=True, slots=True)
class Dialer:
    """Opens links to ps tasks, as one task: `task` is "worker:1" or "ps:1"."""

    settings: Settings
    task: str
    run: str

    def __call__(self, shard: int, address: str, outbox: Ranges, inbox: Ranges, timeout: float) -> Channel:
        """One link to a shard; through shared memory where it runs on this very machine.

        Raises:
            Unavailable: it did not answer within `timeout` seconds, or nobody listens there: then it may have started
                again at another address, so ask for that. `why` tells what was seen.
            AuthError, SecurityError: keys that are missing, refused or not those of the cluster.
        """
        settings = self.settings
        near = address.startswith("tcp:") and settings.ps_hosts and settings.transport != "tcp"
        beside = same_host(self.run, shard, address) if near else ""
        if beside:
            try:
                return transport.connect(beside, outbox, inbox, timeout=0.0)
            except errors.Unavailable:
                if settings.transport == "shared":
                    raise
        mine = keys.load(settings.keys, self.task) if settings.keys else None
        channel = transport.connect(
            address, outbox, inbox, timeout=timeout, absent=ABSENT if address.startswith("tcp:") else 0.0, keys=mine,
            server=f"ps-{shard}", heartbeat=settings.heartbeat_timeout,
        )  # fmt: skip
        if beside:  # it may have begun to listen only now
            with contextlib.suppress(errors.Unavailable):
                nearer = transport.connect(beside, outbox, inbox, timeout=BESIDE)
                channel.close()
                return nearer
        return channel
