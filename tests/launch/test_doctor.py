"""What the doctor says of each thing that can stand at an address. Real sockets on the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from evener import errors, transport
from evener.cluster.cluster import ClusterSpec, Task
from evener.commands import doctor
from evener.commands.doctor import Finding, examine, table
from evener.transport import keys
from evener.transport.channel import Arrived, wait
from evener.wire import codec
from evener.wire.messages import Goodbye, Refused
from evener.wire.standing import Pong
from evener.wire.words import Identity

LEADER = Pong("ps:0", doctor.VERSION, False, "a1f3", "mnist", 812, [1])
IDLE = Pong("worker:0", doctor.VERSION, True)


@contextlib.contextmanager
def answering(*answers, mine=None):
    """Servers that answer whatever they hear: their addresses, "127.0.0.1:4711"."""
    listeners = [transport.listen("tcp", keys=mine, insecure=mine is None) for _ in answers]
    over = threading.Event()

    def serve():
        while not over.is_set():
            for listener in wait(listeners, 0.05):
                for incoming in listener.receive():
                    answer = answers[listeners.index(listener)]
                    if isinstance(incoming, Arrived) and answer is not None:
                        header = answer if isinstance(answer, bytes) else codec.encode(answer)
                        listener.send(incoming.peer, header)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield [listener.address.removeprefix("tcp://") for listener in listeners]
    finally:
        over.set()
        thread.join()
        for listener in listeners:
            listener.close()


@contextlib.contextmanager
def port(*, listens: bool):
    """A port where nobody listens, or somebody who never says a word."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        if listens:
            one.listen()
        yield f"127.0.0.1:{one.getsockname()[1]}"


def states(ps, worker=("127.0.0.1:1",), **options):
    options = {"insecure": "keys" not in options} | options
    return {one.task: one.state for one in examine(ClusterSpec.of({"ps": ps, "worker": worker}), **options)}


@pytest.fixture
def patient(monkeypatch):
    """Seconds enough for whoever answers, on a machine where others want the cores too."""
    monkeypatch.setattr(doctor, "TRY", 120.0)
    monkeypatch.setattr(doctor, "REACH", 60.0)


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_each_kind_of_answer_has_its_name():
    other = b"evnr\x63"  # protocol 99
    old = Pong("ps:1", "0.0.1", False)
    unknown = Refused("ProtocolError", "a peer sent a message that cannot be read", "", "")
    odd = Goodbye(Identity(1))
    with answering(LEADER, old, other, unknown, LEADER, odd, IDLE) as (*ps, worker):
        found = states([*ps, "no-such-host.invalid:1"], [worker, "127.0.0.1:0"])
    assert found == {
        "ps:0": "ready",
        "ps:1": "wrong version",
        "ps:2": "wrong version",
        "ps:3": "wrong version",
        "ps:4": "wrong task",
        "ps:5": "not evener",
        "ps:6": "no DNS",
        "worker:0": "ready",
        "worker:1": "joined",
    }


@pytest.mark.slow
def test_who_listens_and_says_nothing_gives_no_answer():
    with answering(None) as (speechless,), port(listens=True) as mute:
        found = states([speechless, mute])
    assert found == {"ps:0": "no answer", "ps:1": "no answer", "worker:0": "unknown"}


@pytest.mark.usefixtures("patient")
def test_all_tasks_are_tried_at_once(monkeypatch):
    at_once = threading.Barrier(4, timeout=60)

    def look(task, address, _keys):
        at_once.wait()  # broken, unless all four are here
        return Finding(str(task), address, doctor.READY, "")

    monkeypatch.setattr(doctor, "_look", look)
    assert set(states(["a:1", "b:1", "c:1"], ["d:1"]).values()) == {doctor.READY}


def test_one_that_never_comes_to_an_end_holds_nobody(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(doctor, "TRY", 0.01)
    monkeypatch.setattr(doctor, "_look", lambda *_: over.wait(100))
    try:
        assert states(["a:1"], ["b:1"])["ps:0"] == "no answer"
    finally:
        over.set()


@pytest.fixture
def tries_longer(monkeypatch):
    """Seconds enough to say that nobody listens."""
    monkeypatch.setattr(doctor, "TRY", 60.0)


@pytest.mark.slow
@pytest.mark.usefixtures("tries_longer")
def test_a_worker_that_does_not_listen_is_as_ps_0_says():
    with answering(LEADER) as ps, port(listens=False) as shut:
        found = examine(
            ClusterSpec.of({"ps": ps, "worker": [f"localhost:{shut[10:]}", shut, "no-such-host.invalid:1"]})
        )
    assert [(one.task, one.state, one.ready) for one in found] == [
        ("ps:0", "ready", True),
        ("worker:0", "not joined", False),
        ("worker:1", "joined", True),
        ("worker:2", "no DNS", False),
    ]
    assert found[0].detail == "ps:0 of run a1f3 at step 812; joined: worker:1"


@pytest.mark.slow
@pytest.mark.usefixtures("tries_longer")
def test_without_ps_0_nobody_knows_of_a_worker():
    with port(listens=False) as shut:
        assert states([shut], [f"localhost:{shut[10:]}"]) == {"ps:0": "refused", "worker:0": "unknown"}


def test_a_port_that_is_found_when_the_task_starts_is_not_tried():
    assert states(["127.0.0.1:0"], ["127.0.0.1:0"]) == {"ps:0": "no port", "worker:0": "unknown"}


def test_a_standing_server_in_the_place_of_ps_0_knows_of_no_worker_either():
    with answering(Pong("ps:0", doctor.VERSION, True)) as ps, port(listens=False) as shut:
        assert states(ps, [f"localhost:{shut[10:]}"]) == {"ps:0": "ready", "worker:0": "unknown"}


@pytest.fixture
def directories(tmp_path):
    """Two clusters' keys."""
    for name in ("ours", "theirs"):
        keys.new(tmp_path / name, keys.names(1, 1))
    return tmp_path / "ours", tmp_path / "theirs"


def test_keys_that_are_wrong_or_on_one_side_only(directories):
    ours, theirs = directories
    with (
        answering(LEADER, mine=keys.load(ours, "ps:0")) as ps,
        answering(IDLE, mine=keys.load(ours, "worker:0")) as worker,
        answering(LEADER, IDLE) as (bare, also_bare),
    ):
        assert states(ps, worker, keys=str(ours)) == {"ps:0": "ready", "worker:0": "ready"}
        assert states(ps, worker, keys=str(theirs)) == {"ps:0": "wrong key", "worker:0": "wrong key"}
        assert states(ps, worker) == {"ps:0": "no keys here", "worker:0": "no keys here"}
        assert states([bare], [also_bare], keys=str(ours)) == {"ps:0": "no keys there", "worker:0": "no keys there"}
        assert states([*ps, bare], worker, keys=str(ours))["ps:1"] == "no key of it"


def test_it_uses_the_clients_key_or_any_that_lies_there(directories):
    ours, _ = directories
    assert doctor._load(ours, None).name == "client"
    assert doctor._load(ours, Task("worker", 0)).name == "worker-0"
    (ours / "client.secret").unlink()
    assert doctor._load(ours, None).name == "ps-0"
    for secret in ours.glob("*.secret"):
        secret.unlink()
    with pytest.raises(errors.SecurityError, match=r"client\.secret"):
        doctor._load(ours, None)


def test_the_table_sums_up():
    rows = [Finding("ps:0", "h0:2222", "ready", "idle"), Finding("worker:10", "h:1", "refused", "no process.")]
    assert table(rows).splitlines() == [
        "ps:0       h0:2222  ready    idle",
        "worker:10  h:1      refused  no process.",
        "not ready: worker:10",
    ]
    assert table(rows[:1]).endswith("\nall are ready")
