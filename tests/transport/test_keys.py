"""Keys: the files, who gets in with which, and that nobody does when something is missing."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from evener.transport.zeromq import ZeroMQListener
from evener.transport.zeromq_channel import ZeroMQChannel
from evener.transport.zeromq_wire import OPEN, PLAIN, check_library, first_frame, pack_sizes
from transport_children import NEVER, PATIENCE, boxes, closed, hear

from evener import cli, transport
from evener.errors import AuthError, ConfigError, PeerGone, SecurityError, Unavailable
from evener.transport import keys, zeromq, zeromq_curve
from evener.transport.channel import Arrived, Closed, Opened, wait
from evener.transport.keys import Keys, load, new

NAMES = ["ps-0", "ps-1", "worker-0", "worker-1"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    new(tmp_path / "keys", NAMES)
    return tmp_path / "keys"


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """The keys of another cluster, with tasks of the same names."""
    new(tmp_path / "others", NAMES)
    return tmp_path / "others"


@pytest.fixture
def listener(directory: Path) -> Iterator[ZeroMQListener]:
    listener = zeromq.listen(keys=load(directory, "ps-0"))
    yield listener
    listener.close()


def connect(
    listener: ZeroMQListener, mine: Keys | None, server: str = "ps-0", absent: float = math.inf
) -> ZeroMQChannel:
    return zeromq.connect(listener.address, *boxes(100), timeout=NEVER, absent=absent, keys=mine, server=server)


def nobody_came(listener: ZeroMQListener) -> bool:
    while wait([listener], 0.05):
        if listener.receive():
            return False
    return not listener._links and not listener._peers


def serves(listener: ZeroMQListener, mine: Keys) -> bool:
    """A task of the cluster gets in, is known by name, and pushes and is answered."""
    channel = connect(listener, mine)
    (opened,) = hear(listener, bool)
    assert isinstance(opened, Opened) and listener.user(opened.peer) == mine.name
    listener.admit(opened.peer, (100,))
    channel.send(b"push", payload=True)
    assert hear(listener, bool) == [Arrived(opened.peer, b"push", True)]
    listener.send(opened.peer, b"release", [memoryview(bytes(100))])
    assert channel.receive(PATIENCE) == b"release"
    channel.close()
    hear(listener, closed(opened.peer))
    return True


# Files


def test_a_cluster_has_a_pair_for_each_task_and_only_the_owner_reads_a_secret(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        new(tmp_path / "a" / "keys", keys.names(1, 2))
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "keys").iterdir()}
    names = ("ps-0", "worker-0", "worker-1", "client")
    assert modes == {f"{n}.public": 0o644 for n in names} | {f"{n}.secret": 0o600 for n in names}
    mine = load(tmp_path / "a" / "keys", "worker:1")
    assert mine.name == "worker-1" and set(mine.public) == set(names)
    assert zmq.curve_public(mine.secret) == mine.public["worker-1"]


def test_keys_that_exist_are_not_replaced_and_then_nothing_new_is_made(directory: Path) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(SecurityError, match=r"worker-1\.secret exists") as error:
        new(directory, ["worker-2", "worker-1", "worker-3"])
    assert "another directory" in error.value.fix
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    new(directory, ["worker-2"])
    assert set(load(directory, "ps-0").public) == {*NAMES, "worker-2"}


def test_a_link_that_lies_where_a_secret_would_go_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ps-0.secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SecurityError, match=r"ps-0\.secret exists"):
        new(tmp_path, ["ps-0"])
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "ps-0.public").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecurityError, match="cannot write keys"):
        new(tmp_path / "file" / "keys", ["ps-0"])


@pytest.mark.parametrize("names", [["../ps-0"], ["ps-00"], ["PS-0"], ["ps 0"], [""], ["ps-0", "ps-0"]])
def test_names_that_no_task_can_have_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"no name of a task|one name twice"):
        new(tmp_path, names)
    assert not list(tmp_path.iterdir())


#: what happened to which file -> (what is said, how to mend it)
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "no secret": ("worker-0.secret", Path.unlink, "there is no .*worker-0.secret", "evener keys new"),
    "no public key of its own": ("worker-0.public", Path.unlink, "does not belong to worker-0.public", "copy both"),
    "not Z85": ("worker-0.secret", lambda path: path.write_bytes(b"~" * 40), "is no key", "copy it again"),
    "too long": ("worker-0.secret", lambda path: path.write_bytes(b"1" * 45), "is no key", "copy it again"),
    "empty": ("worker-1.public", lambda path: path.write_bytes(b""), "worker-1.public is no key", "copy it again"),
    "not text": ("ps-0.public", lambda path: path.write_bytes(bytes(range(216, 256))), "is no key", "copy it again"),
    "a group reads it": ("worker-0.secret", lambda path: path.chmod(0o640), "has mode 0640", "run chmod 600 .*secret$"),
    "all read it": ("worker-0.secret", lambda path: path.chmod(0o604), "has mode 0604", "run chmod 600 .*secret$"),
    "all write a public key": ("ps-0.public", lambda path: path.chmod(0o646), "has mode 0646", "chmod o-w"),
    "all write the directory": (".", lambda path: path.chmod(0o777), "has mode 0777", "chmod o-w"),
    "a directory": ("worker-0.secret", lambda path: (path.unlink(), path.mkdir()), "cannot read|is no file", ""),
    "a secret of another": (
        "worker-0.secret",
        lambda path: path.write_bytes((path.parent / "worker-1.secret").read_bytes()),
        "does not belong to worker-0.public",
        "copy both",
    ),
    "two tasks with one key": (
        "worker-1.public",
        lambda path: path.write_bytes((path.parent / "worker-0.public").read_bytes()),
        "worker-0 and worker-1 have the same public key",
        "anew",
    ),
}


@pytest.mark.parametrize(("name", "change", "what", "fix"), DAMAGE.values(), ids=DAMAGE.keys())
def test_files_that_are_missing_damaged_or_open_to_others_are_refused(
    directory: Path, name: str, change: Callable[[Path], object], what: str, fix: str
) -> None:
    secret = (directory / "worker-0.secret").read_text().strip()
    change(directory / name)
    with pytest.raises(SecurityError, match=what) as error:
        load(directory, "worker-0")
    assert re.search(fix, error.value.fix)
    assert secret not in str(error.value)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match=r"there is no .*nowhere"):
        load(tmp_path / "nowhere", "ps-0")


def test_files_of_other_names_are_not_looked_at(directory: Path) -> None:
    for name in ("._ps-0.public", "ps-0 (copy).public", "README", "worker-01.public"):
        (directory / name).write_text("no key")
    assert set(load(directory, "ps-0").public) == set(NAMES)


def test_a_secret_is_not_in_what_is_printed_of_keys(directory: Path) -> None:
    mine = load(directory, "ps-0")
    assert mine.secret.decode() not in repr(mine) and mine.secret.decode() not in str(mine)


def test_the_command_makes_keys_says_who_gets_which_and_shows_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["keys", "new", str(tmp_path / "k"), "--ps", "2", "--workers", "3"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert "ps-0, ps-1, worker-0, worker-1, worker-2" in out and "*.secret" in out and not err
    assert len(list((tmp_path / "k").iterdir())) == 12
    for path in (tmp_path / "k").iterdir():
        assert path.read_text().strip() not in out
    assert cli.main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["keys", "new", str(tmp_path / "none"), "--ps", "0"]) == 2
    assert cli.main(["keys"]) == 2


# Who gets in


def test_tasks_of_the_cluster_get_in_and_are_known_by_the_key_they_proved(
    listener: ZeroMQListener, directory: Path
) -> None:
    for name in ("worker-0", "worker-1", "ps-1"):
        assert serves(listener, load(directory, name))


def test_the_seam_passes_keys_through_and_tells_users_of_every_kind(directory: Path) -> None:
    for kind, expected in (("zeromq", "worker-1"), ("memory", ""), ("shared", "")):
        with contextlib.closing(transport.listen(kind, keys=load(directory, "ps-0"))) as listener:
            mine = load(directory, "worker-1")
            channel = transport.connect(listener.address, *boxes(8), timeout=PATIENCE, keys=mine, server="ps:0")
            (opened,) = hear(listener, bool)
            assert transport.user(listener, opened.peer) == expected
            channel.close()


def test_without_keys_a_peer_has_no_name() -> None:
    with contextlib.closing(zeromq.listen()) as listener:
        with contextlib.closing(connect(listener, None)):
            (opened,) = hear(listener, bool)
            assert listener.user(opened.peer) == ""
        hear(listener, closed(opened.peer))
        with pytest.raises(PeerGone):
            listener.user(opened.peer)


def test_an_unknown_key_is_refused_at_once_and_logged_with_its_address(
    listener: ZeroMQListener, directory: Path, strangers: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (strangers / "ps-0.public").write_bytes((directory / "ps-0.public").read_bytes())  # it knows whom it talks to
    with pytest.raises(AuthError, match=r"ps:0 refused the key of worker:1") as error:
        connect(listener, load(strangers, "worker-1"))
    assert "public keys" in error.value.fix
    assert nobody_came(listener)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "ps:0: refused 127.0.0.1: its key is no task's" in caplog.text
    assert serves(listener, load(directory, "worker-1"))


def test_a_server_with_another_key_is_left_after_three_attempts(
    listener: ZeroMQListener, directory: Path, strangers: Path
) -> None:
    with pytest.raises(AuthError, match=r"ps:0 did not prove the key in the config") as error:
        connect(listener, load(strangers, "worker-1"))
    assert listener.address in str(error.value)
    with pytest.raises(AuthError, match=r"ps:1 did not prove"):  # it is ps:0
        connect(listener, load(directory, "worker-1"), server="ps-1")
    with pytest.raises(AuthError, match=r"ps:0 did not prove"):  # somebody listens: that is no reason to give up sooner
        connect(listener, load(strangers, "worker-1"), absent=0.0)
    assert nobody_came(listener)
    with pytest.raises(SecurityError, match=r"no public key of ps:7"):
        connect(listener, load(directory, "worker-1"), server="ps-7")


def test_a_worker_without_keys_is_told_that_the_server_asks_for_one(listener: ZeroMQListener, directory: Path) -> None:
    with pytest.raises(AuthError, match=r"asks for a key, this task has none"):
        connect(listener, None)
    assert nobody_came(listener) and serves(listener, load(directory, "worker-1"))


def test_a_worker_with_keys_does_not_speak_to_a_server_without(directory: Path) -> None:
    with contextlib.closing(zeromq.listen()) as listener:
        with pytest.raises(AuthError, match=r"ps:0 at .* has no keys, worker:1 has some"):
            connect(listener, load(directory, "worker-1"))
        assert nobody_came(listener)


def test_a_server_that_is_not_there_yet_is_no_question_of_keys(directory: Path) -> None:
    listener = zeromq.listen()
    listener.close()
    with pytest.raises(Unavailable, match="has not answered") as error:
        zeromq.connect(listener.address, *boxes(8), timeout=NEVER, absent=0.0, keys=load(directory, "worker-1"))
    assert "no process listens" in error.value.why


@pytest.mark.parametrize("how", ["ended", "ends at the first question"])
def test_nobody_gets_in_while_nobody_looks_at_keys(directory: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    name, instead = ("_serve", lambda self: self._questions.close(0)) if how == "ended" else ("_task", end_thread)
    monkeypatch.setattr(zeromq_curve.Gatekeeper, name, instead)
    with contextlib.closing(zeromq.listen(keys=load(directory, "ps-0"))) as listener:
        with pytest.raises((AuthError, Unavailable)):
            zeromq.connect(listener.address, *boxes(8), timeout=1.0, keys=load(directory, "worker-1"))
        assert nobody_came(listener)


def end_thread(*_: object) -> bytes:
    raise zmq.ContextTerminated


def test_that_is_owed_to_the_setting_which_makes_zeromq_ask(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same dead gatekeeper with ENFORCE_DOMAIN switched off: any key gets in. So the test above tests it."""
    mine = load(directory, "ps-0")
    settings = zeromq_curve.server_settings(mine)
    assert settings[zmq.ZAP_ENFORCE_DOMAIN] == 1 and settings[zmq.ZAP_DOMAIN] == b"evener"
    monkeypatch.setattr(zeromq_curve.Gatekeeper, "_serve", lambda self: self._questions.close(0))
    monkeypatch.setattr(zeromq_curve, "server_settings", lambda keys: settings | {zmq.ZAP_ENFORCE_DOMAIN: 0})
    with (
        contextlib.closing(zeromq.listen(keys=mine)) as listener,
        contextlib.closing(connect(listener, load(directory, "worker-1"))),
    ):
        (opened,) = hear(listener, bool)
        assert isinstance(opened, Opened) and listener.user(opened.peer) == ""


@contextlib.contextmanager
def impostor(listener: ZeroMQListener, mine: Keys, name: bytes) -> Iterator[zmq.Socket[bytes]]:
    """A peer with a valid key that chooses its own routing id."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.DEALER)
    for option, value in zeromq_curve.client_settings(mine, "ps-0").items():
        sock.setsockopt(option, value)
    sock.setsockopt(zmq.ROUTING_ID, name)
    sock.linger = 1000
    sock.connect(listener.address)
    try:
        yield sock
    finally:
        sock.close()
        context.term()


def test_who_takes_the_routing_id_of_a_peer_that_is_gone_does_not_become_that_peer(
    listener: ZeroMQListener, directory: Path
) -> None:
    opening, word = first_frame(OPEN, pack_sizes([100])), first_frame(PLAIN, b"a word in another's name")
    with impostor(listener, load(directory, "worker-0"), b"same") as sock:
        sock.send(opening)
        (first,) = hear(listener, bool)
        assert listener.user(first.peer) == "worker-0"
    deadline = time.monotonic() + PATIENCE
    # Until ZeroMQ has forgotten the name; of which the listener has not read yet.
    with pytest.raises(zmq.ZMQError, match="unreachable"):
        while time.monotonic() < deadline:
            listener._wire.socket.send_multipart([b"same", b""], zmq.NOBLOCK)
    with impostor(listener, load(directory, "worker-1"), b"same") as sock:
        sock.send(word)
        sock.send(opening)
        while not listener._wire.has_message():
            assert time.monotonic() < deadline and wait([listener], 0.01) is not None
        assert [type(event) for event in hear(listener, closed(first.peer))] == [Closed]
        while not sock.poll(1):  # it is told that its word opened no link
            if wait([listener], 0.01):
                assert listener.receive() == []
        assert b"opens no link" in sock.recv()


def test_bytes_of_any_kind_at_an_encrypted_port_are_no_message_and_are_logged(
    listener: ZeroMQListener, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(listener.address.rpartition(":")[2])
    old = b"\x01\x00" + b"\x04\x00abc" * 3  # ZMTP 1.0, which has no keys
    plain = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    for data in (b"", old, plain, b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000)):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5.0) as sock:
            sock.sendall(data)
    deadline = time.monotonic() + PATIENCE
    while caplog.text.count("none of ours") < 5:
        assert time.monotonic() < deadline, caplog.text
        if wait([listener], 0.1):
            assert listener.receive() == []
    assert nobody_came(listener) and serves(listener, load(directory, "worker-1"))


def test_close_leaves_no_thread_and_no_descriptor(directory: Path) -> None:
    def once() -> None:
        listener = zeromq.listen(keys=load(directory, "ps-0"))
        assert serves(listener, load(directory, "worker-0"))
        listener.close()

    once()  # whatever ZeroMQ keeps for the whole process is made now
    tasks, files = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    once()
    deadline = time.monotonic() + PATIENCE
    while (
        len(os.listdir("/proc/self/task")) > tasks
    ):  # a joined thread is Python's no more, but for a moment the kernel's
        assert time.monotonic() < deadline
    assert len(os.listdir("/proc/self/fd")) <= files
    assert "evener-keys" not in {thread.name for thread in threading.enumerate()}


FORGET = """
import gc, os, sys, time
from evener.transport import zeromq
from evener.transport.channel import Memory, Ranges
from evener.transport.keys import load
mine = load(sys.argv[1], "ps-0") if len(sys.argv) > 1 else None
r = Ranges(Memory(8), ((0, 8),))
listener = zeromq.listen(keys=mine)
channel = zeromq.connect(listener.address, r, r, keys=mine)
for forgotten in ([channel], [listener]):
    forgotten.append(forgotten)  # as an error's traceback does
del channel, listener, forgotten
gc.collect()
deadline = time.monotonic() + 60
while len(os.listdir("/proc/self/task")) > 1:  # the gatekeeper may be on its way out
    assert time.monotonic() < deadline, "threads are left"
"""


@pytest.mark.parametrize("curve", [True, False])
def test_links_that_are_forgotten_neither_hang_the_process_nor_keep_their_port(directory: Path, curve: bool) -> None:
    subprocess.run([sys.executable, "-c", FORGET, *[str(directory)] * curve], check=True, timeout=100)


def test_a_process_may_end_without_closing_anything(listener: ZeroMQListener, directory: Path) -> None:
    code = """
import sys
from evener import transport
from evener.transport.channel import Memory, Ranges
from evener.transport.keys import load
r = Ranges(Memory(8), ((0, 8),))
a = transport.listen("zeromq", keys=load(sys.argv[2], "ps-1"))
b = transport.connect(sys.argv[1], r, r, keys=load(sys.argv[2], "worker-0"))
b.send(b"x")
"""
    subprocess.run([sys.executable, "-c", code, listener.address, str(directory)], check=True, timeout=100)


# Addresses


EXPOSED = ["0.0.0.0", "192.0.2.1", "[::]", "10.0.0.9"]


@pytest.mark.parametrize("host", EXPOSED)
def test_beyond_this_machine_a_server_without_keys_does_not_listen(host: str) -> None:
    with pytest.raises(SecurityError, match=r"refusing to listen on .* without keys") as error:
        transport.listen("zeromq", f"tcp://{host}:0")
    assert "evener keys new DIR" in error.value.fix and "--insecure" in error.value.fix


def test_insecure_is_said_in_the_log_at_each_start(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        transport.listen("zeromq", "tcp://0.0.0.0:0", insecure=True).close()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "without keys, as --insecure says" in caplog.text


def test_with_keys_a_server_listens_anywhere_and_on_loopback_it_needs_none(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport.listen("zeromq", "tcp://0.0.0.0:0", keys=load(directory, "ps-0")).close()
    for host in ("127.0.0.1", "127.8.8.8", "localhost"):
        transport.listen("zeromq", f"tcp://{host}:0").close()
        transport.listen("zeromq", f"tcp://{host}:0", insecure=True).close()
    assert not caplog.records


def test_no_port_of_this_process_is_open_to_all_addresses(directory: Path) -> None:
    with (
        contextlib.closing(transport.listen("zeromq")),
        contextlib.closing(zeromq.listen(keys=load(directory, "ps-0"))) as listener,
        contextlib.closing(connect(listener, load(directory, "worker-0"))),
    ):
        mine = listeners_of_this_process()
        assert len(mine) >= 2
        assert not {address for address in mine if set(address) <= {"0"}}
    with contextlib.closing(transport.listen("zeromq", "tcp://0.0.0.0:0", insecure=True)):
        assert "00000000" in listeners_of_this_process()  # such a port would be found


def listeners_of_this_process() -> list[str]:
    """The addresses, as the kernel prints them, on which this process listens."""
    inodes = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/self/fd/{fd}").removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


def test_ipv6_loopback_serves_too(directory: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with contextlib.closing(zeromq.listen("tcp://[::1]:0")) as listener:
        assert listener.address.startswith("tcp://[::1]:")
        with contextlib.closing(connect(listener, None)):
            assert isinstance(hear(listener, bool)[0], Opened)
    with contextlib.closing(zeromq.listen("tcp://[::1]:0", keys=load(directory, "ps-0"))) as listener:
        assert serves(listener, load(directory, "worker-0"))


@pytest.mark.parametrize(
    ("version", "curve", "what"), [((4, 3, 4), True, r"4\.3\.4 is too old"), ((4, 3, 5), False, "without CURVE")]
)
def test_a_zeromq_that_cannot_be_trusted_is_refused(version: tuple[int, ...], curve: bool, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as error:
        check_library(version, curve=curve)
    assert "pyzmq" in error.value.fix
    check_library((4, 10, 0), curve=True)
