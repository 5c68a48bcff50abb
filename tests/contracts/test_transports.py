"""Every transport keeps the contract of transports, whatever carries the bytes."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from evener import transport
from evener.testing.contracts.linked import SECONDS, Ends
from evener.testing.contracts.transports import TransportContract
from evener.transport.channel import Channel, Listener, Ranges
from evener.transport.keys import Keys, load, new

#: Heartbeats that never come: who is known to be gone is known by the end of the link.
NEVER = 1000.0


@functools.cache
def cluster_keys() -> tuple[Keys, Keys]:
    """Of a server and of a worker."""
    with tempfile.TemporaryDirectory() as directory:
        new(Path(directory), ["ps-0", "worker-0"])
        return load(Path(directory), "ps-0"), load(Path(directory), "worker-0")


class Carried:
    """A transport by its name, with keys or without."""

    def __init__(self, name: str) -> None:
        self.kind, _, keyed = name.partition("+")
        self.endless = self.kind == "memory"
        self.server, self.worker = cluster_keys() if keyed else (None, None)

    def listen(self, address: str = "") -> Listener:
        return transport.listen(self.kind, address, keys=self.server, insecure=self.server is None, heartbeat=NEVER)

    def connect(
        self, address: str, outbox: Ranges, inbox: Ranges, timeout: float = SECONDS, absent: float = SECONDS
    ) -> Channel:
        return transport.connect(
            address, outbox, inbox, timeout=timeout, absent=absent, keys=self.worker, heartbeat=NEVER
        )


class TestEveryTransport(TransportContract):
    @pytest.fixture(params=["memory", "shared", "tcp", "tcp+keys"])
    def ends(self, request: pytest.FixtureRequest) -> Ends:
        return Carried(request.param)
