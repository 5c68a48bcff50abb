"""Which way a task goes to another."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from evener import errors
from evener.settings import Settings
from evener.task import wiring
from evener.task.wiring import Dialer, listen, meeting, public_address
from evener.transport.channel import Memory, Ranges

NOTHING = Ranges(Memory(0), ())


def test_nobody_waits_at_an_address_of_this_machine_where_nobody_listens():
    """A ps that starts again has another one: it is asked for anew."""
    with pytest.raises(errors.Unavailable, match="has not answered for 0 s"):
        Dialer(Settings(), "worker:0", "run")(0, "shared:evener-nobody", NOTHING, NOTHING, 60.0)


class Ways:
    """`transport.connect` that finds somebody at some addresses, and remembers where it went."""

    def __init__(self, *found):
        self.found, self.went, self.patience, self.closed = list(found), [], [], []

    def __call__(self, address, outbox, inbox, **options):
        self.went.append(address.partition(":")[0])
        self.patience.append(options["timeout"])
        if not self.found.pop(0):
            raise errors.Unavailable("nobody there.")
        return SimpleNamespace(address=address, close=lambda: self.closed.append(address))


@pytest.mark.parametrize(
    ("transport", "found", "went"),
    [
        ("auto", [True], ["shared"]),
        ("auto", [False, True, False], ["shared", "tcp", "shared"]),
        ("auto", [False, True, True], ["shared", "tcp", "shared"]),  # it was just beginning to listen
        ("tcp", [True], ["tcp"]),
        ("shared", [True], ["shared"]),
    ],
)
def test_memory_is_the_way_on_one_machine_and_the_network_between_two(transport, found, went, monkeypatch):
    ways = Ways(*found)
    monkeypatch.setattr(wiring.transport, "connect", ways)
    monkeypatch.setattr(wiring, "_beside", lambda run, shard, address: "shared:evener-here")
    settings = Settings(ps=1, ps_hosts=("a:2222",), transport=transport)
    channel = Dialer(settings, "worker:0", "run")(0, "tcp://a:2222", NOTHING, NOTHING, 1.0)
    assert ways.went == went
    # a ps opens its port a moment before its memory
    assert went != ["shared", "tcp", "shared"] or ways.patience == pytest.approx([0.0, 1.0, wiring.BESIDE], abs=0.05)
    assert wiring.BESIDE > 0
    assert channel.address.startswith("shared" if found[-1] and went[-1] == "shared" else "tcp")
    assert ways.closed == (["tcp://a:2222"] if found == [False, True, True] else [])


def test_who_wants_memory_alone_does_not_go_by_the_network(monkeypatch):
    monkeypatch.setattr(wiring.transport, "connect", Ways(False))
    monkeypatch.setattr(wiring, "_beside", lambda run, shard, address: "shared:evener-here")
    dial = Dialer(Settings(ps=1, ps_hosts=("a:2222",), transport="shared"), "worker:0", "run")
    with pytest.raises(errors.Unavailable):
        dial(0, "tcp://a:2222", NOTHING, NOTHING, 1.0)


def test_two_runs_of_one_machine_that_were_told_the_same_cluster_do_not_meet():
    assert meeting("run", 0, "tcp://a:2222") == meeting("run", 0, "tcp://b:2222")
    assert len({meeting(run, shard, f"tcp://a:{port}") for run in "ab" for shard in (0, 1) for port in (1, 2)}) == 8


def test_a_ps_is_met_under_a_name_that_nobody_can_guess_and_another_at_each_start():
    settings = Settings(ps=1, ps_hosts=("127.0.0.1:0",), insecure=True)
    names = set()
    for _ in range(3):
        listeners = listen(settings, 0, "run")
        tcp, beside = (listener.address for listener in listeners)
        names.add(beside)
        assert wiring._beside("run", 0, tcp) == beside
        wiring.close(settings, 0, "run", listeners)
        assert wiring._beside("run", 0, tcp) == ""
    assert len(names) == 3


def test_without_a_private_directory_tasks_of_one_machine_go_by_the_network(monkeypatch):
    def none():
        raise errors.SecurityError("there is none.")

    monkeypatch.setattr(wiring, "private_directory", none)
    settings = Settings(ps=1, ps_hosts=("127.0.0.1:0",), insecure=True)
    (only,) = listen(settings, 0, "run")
    assert only.address.startswith("tcp:")
    only.close()
    with pytest.raises(errors.SecurityError):
        listen(replace(settings, transport="shared"), 0, "run")


def test_others_are_told_the_host_that_the_user_named_and_the_port_that_was_found():
    listens = SimpleNamespace(address="tcp://0.0.0.0:4711")
    assert public_address(Settings(ps=1, ps_hosts=("trainer:0",)), 0, listens) == "tcp://trainer:4711"
    assert public_address(Settings(ps=1), 0, listens) == "tcp://0.0.0.0:4711"
    assert public_address(Settings(ps=1, ps_hosts=("a:1",)), 0, SimpleNamespace(address="shared:x")) == "shared:x"
