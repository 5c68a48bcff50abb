"""Every way in which a task becomes a process keeps the contract of starters."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from evener import transport
from evener.cluster.cluster import Address, ClusterSpec, Task
from evener.launch.standing.allowed import Allowed
from evener.launch.standing.server import ServerSettings, StandingServer
from evener.launch.starters.forked import possible
from evener.launch.starters.process import Processes
from evener.launch.starters.remote import StandingServers
from evener.settings import Settings
from evener.testing.contracts.starters import StarterContract

pytestmark = pytest.mark.slow


class OfThisMachine(StarterContract):
    forks: bool

    @pytest.fixture
    def starter(self, place) -> Iterator[Processes]:
        if self.forks and not possible():
            pytest.skip("no fork server here: it needs Linux, and no GPU")
        starter = Processes(forks=self.forks)
        yield starter
        starter.close()

    @pytest.fixture
    def broken(self, place, monkeypatch) -> Processes:
        """Python is not where it was, after an update say."""
        monkeypatch.setattr(sys, "executable", str(place / "python"))
        return Processes(forks=self.forks)


class TestForked(OfThisMachine):
    forks = True


class TestStarted(OfThisMachine):
    forks = False


class TestRemote(StarterContract):
    """On standing servers, which run in threads here."""

    @pytest.fixture
    def starter(self, place) -> Iterator[StandingServers]:
        asked: list[str] = []
        threads, addresses = [], {}
        for task in (Task("ps", 0), Task("worker", 0)):
            listener = transport.listen("tcp", insecure=True)
            addresses[task.job] = [listener.address.removeprefix("tcp://")]
            allowed = Allowed(recipes=("errand_*",), logdirs=(str(place),))
            own = ServerSettings(task, Address("127.0.0.1", 0), {"insecure": True}, allowed)
            server = StandingServer(own, listener, say=lambda line: None)
            threads.append(threading.Thread(target=server.serve, args=(lambda: asked,)))
            threads[-1].start()
        client = self.client(ClusterSpec.of(addresses))
        client.reserve(lambda line: None)
        yield client
        client.close()
        asked += ["the end", "the end"]
        for thread in threads:
            thread.join(30.0)
            assert not thread.is_alive()

    @pytest.fixture
    def broken(self, place) -> StandingServers:
        """Nobody listens there."""
        listener = transport.listen("tcp", insecure=True)
        address = listener.address.removeprefix("tcp://")
        listener.close()
        return self.client(ClusterSpec.of({"ps": [address], "worker": ["localhost:1"]}))

    def client(self, cluster: ClusterSpec) -> StandingServers:
        settings = Settings(recipe="errand_0:recipe", ps=1, workers=1, logdir="run", insecure=True)
        return StandingServers(cluster, settings)
