"""What a standing server takes from its command line."""

from __future__ import annotations

import signal

import pytest

from evener.cluster.cluster import ClusterSpec
from evener.cluster.environment import Found
from evener.control.interrupts import STOPPING
from evener.launch.standing import process as stand_by
from evener.launch.standing.allowed import Allowed
from evener.settings import Settings
from evener.transport import keys


class Server:
    """Stands by no longer than it takes to look at what it was given."""

    seen: Server

    def __init__(self, own, listener, *, say):
        self.own, self.listener, Server.seen = own, listener, self

    def serve(self, asked):
        self.asked = asked
        self.handlers = {number: signal.getsignal(number) for number in STOPPING}
        self.listener.close()


@pytest.fixture
def stand(monkeypatch):
    """Stands by with these settings; returns what the server was given."""
    listened = []
    listen = stand_by.transport.listen

    def remembered(*args, **options):
        listened.append(options)
        return listen(*args, **options)

    monkeypatch.setattr(stand_by.transport, "listen", remembered)
    monkeypatch.setattr(stand_by, "StandingServer", Server)
    before = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests themselves were started by nohup

    def stand(**options):
        cluster = ClusterSpec.of({"ps": ["127.0.0.1:0"], "worker": ["127.0.0.1:0"]})
        stand_by.stand(
            Found(cluster, cluster.task("ps", 0), "a test"), Settings(**options), Allowed(), lambda line: None
        )
        return Server.seen, listened[-1]

    yield stand
    for number, handler in before.items():
        signal.signal(number, handler)


def test_its_tasks_get_its_own_word_on_keys_strangers_and_heartbeats(stand, tmp_path, monkeypatch):
    """A client that has no keys cannot make them listen without; and a relative path would be another elsewhere."""
    keys.new(tmp_path / "keys", keys.names(1, 1))
    monkeypatch.chdir(tmp_path)
    server, listened = stand(keys="keys", heartbeat_timeout=3.5)
    assert server.own.settings == {"keys": str(tmp_path / "keys"), "insecure": False, "heartbeat_timeout": 3.5}
    assert (listened["heartbeat"], listened["insecure"], listened["keys"] is not None) == (3.5, False, True)
    server, listened = stand(insecure=True)
    assert (server.own.settings["keys"], server.own.settings["insecure"], listened["keys"]) == ("", True, None)


def test_it_ends_by_each_of_the_signals_and_nohup_has_its_way(stand):
    server, _ = stand()
    for number in STOPPING:
        server.handlers[number](number, None)
    assert server.asked() == ["SIGINT", "SIGTERM", "SIGHUP"]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server, _ = stand()
    assert server.handlers[signal.SIGHUP] is signal.SIG_IGN
