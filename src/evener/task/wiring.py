"""By which transports, at which addresses and with which keys the tasks of a run reach each other."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass

from evener import errors, transport
from evener.cluster.private import private_directory
from evener.settings import Settings
from evener.transport import keys, meeting_names
from evener.transport.channel import Channel, Listener, Ranges

log = logging.getLogger(__name__)

#: Seconds at a port where nobody listens; of a name of this machine the kernel knows at once.
ABSENT = 0.2
#: Seconds that a ps of this machine may take from its port to its shared memory; a worker elsewhere waits so long once.
BESIDE = 0.1


def meeting(run: str, shard: int, address: str) -> str:
    """The key under which a ps task that listens at tcp://HOST:PORT tells tasks of its machine and user where to meet.

    There tensors go through shared memory, and the kernel vouches for the user (RELIABILITY section 5). The port keeps
    apart two runs of one machine that were told the same cluster.
    """
    return f"{run}-ps-{shard}-{address.rpartition(':')[2]}"


def _listen_beside(run: str, shard: int, address: str) -> Listener:
    """Listen for tasks of this machine too. Raises SecurityError where no name can be told to this user alone."""
    private, name = private_directory(), meeting_names.fresh()
    listener = transport.listen("shared", name)
    try:
        meeting_names.tell(private, meeting(run, shard, address), name)
    except OSError as error:
        listener.close()
        raise errors.SecurityError(
            f"cannot write in {private}.", why=str(error), fix="make room there, or use --transport tcp."
        ) from error
    return listener


def close(settings: Settings, shard: int, run: str, listeners: list[Listener]) -> None:
    """Listen no more; nobody is told of it any longer."""
    for listener in listeners:
        if settings.ps_hosts and listener.address.startswith("shared:"):
            public = listeners[0].address if len(listeners) > 1 else settings.ps_hosts[shard]
            with contextlib.suppress(errors.SecurityError):
                meeting_names.forget(private_directory(), meeting(run, shard, public), listener.address)
        listener.close()


def _beside(run: str, shard: int, address: str) -> str:
    """Where this ps task is met on this machine; empty if it is not here, or not yet."""
    with contextlib.suppress(errors.SecurityError):
        return meeting_names.find(private_directory(), meeting(run, shard, address))
    return ""


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
        return [_listen_beside(run, shard, address)]
    listeners = [
        transport.listen(
            "tcp", address, keys=mine, insecure=settings.insecure, heartbeat=settings.heartbeat_timeout
        )
    ]  # fmt: skip
    if settings.transport == "auto":
        try:
            listeners.append(_listen_beside(run, shard, listeners[0].address))
        except errors.SecurityError as error:  # tasks of this machine come by the network too
            log.warning("%s", error)
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
        if near:
            try:
                return self._nearer(shard, address, outbox, inbox)
            except errors.Unavailable:
                if settings.transport == "shared":
                    raise
        mine = keys.load(settings.keys, self.task) if settings.keys else None
        channel = transport.connect(
            address, outbox, inbox, timeout=timeout, absent=ABSENT if address.startswith("tcp:") else 0.0, keys=mine,
            server=f"ps-{shard}", heartbeat=settings.heartbeat_timeout,
        )  # fmt: skip
        if near:  # it may have begun to listen only now
            with contextlib.suppress(errors.Unavailable):
                nearer = self._nearer(shard, address, outbox, inbox, BESIDE)
                channel.close()
                return nearer
        return channel

    def _nearer(self, shard: int, address: str, outbox: Ranges, inbox: Ranges, timeout: float = 0.0) -> Channel:
        """A link through shared memory. Raises Unavailable: it does not listen on this machine."""
        deadline = time.monotonic() + timeout
        while not (beside := _beside(self.run, shard, address)):
            if time.monotonic() >= deadline:
                raise errors.Unavailable(f"ps:{shard} is not met on this machine.", fix="start it here, or wait.")
            time.sleep(0.01)
        return transport.connect(beside, outbox, inbox, timeout=max(0.0, deadline - time.monotonic()))
