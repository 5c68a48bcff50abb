"""Keys: the files, who gets in with which, and that nobody does when something is missing."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from transport_children import NEVER, PATIENCE, boxes, closed, connected, during, hear, worker

from evener import transport
from evener.cli import main as cli
from evener.errors import AuthError, ConfigError, PeerGone, SecurityError, Unavailable
from evener.transport import keys, tcp
from evener.transport.channel import Arrived, Closed, Opened, wait
from evener.transport.keys import Keys, load, new
from evener.transport.tcp import TcpListener
from evener.transport.tcp_handshake import MAX_HANDSHAKE, MAX_RECORD, Credentials, Handshake, Unproven, Untrusted
from evener.transport.tcp_wire import HEAD, OPEN, greeting, pack_sizes

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
def listener(directory: Path) -> Iterator[TcpListener]:
    listener = tcp.listen(keys=load(directory, "ps-0"))
    yield listener
    listener.close()


def connect(listener: TcpListener, mine: Keys | None, server: str = "ps-0", absent: float = math.inf) -> None:
    """What a task that tries to connect is told; the listener has nothing to tell."""
    options: dict[str, Any] = {"timeout": NEVER, "absent": absent, "keys": mine, "server": server}
    assert during(listener, lambda: transport.connect(listener.address, *boxes(100), **options).close()) == []


def nobody_came(listener: TcpListener) -> bool:
    while wait([listener], 0.05):
        if listener.receive():
            return False
        if not listener._links and not listener._farewells:
            break
    return not listener._peers


def serves(listener: TcpListener, mine: Keys) -> bool:
    """A task of the cluster gets in, is known by name, and pushes and is answered."""
    channel, opened = connected(listener, 100, keys=mine)
    assert listener.user(opened.peer) == mine.name
    listener.admit(opened.peer, (100,))
    channel.send(b"push", payload=True)
    assert hear(listener, bool) == [Arrived(opened.peer, b"push", True)]
    listener.send(opened.peer, b"release", [memoryview(bytes(100))])
    assert channel.receive(PATIENCE) == b"release"
    channel.close()
    hear(listener, closed(opened.peer))
    return True


def test_a_server_that_listens_learns_the_new_key_of_a_task_and_takes_the_old_one_no_longer(
    listener: TcpListener, directory: Path, strangers: Path
) -> None:
    (strangers / "ps-0.public").write_bytes((directory / "ps-0.public").read_bytes())
    before, after = load(directory, "worker-1"), load(strangers, "worker-1")
    assert serves(listener, before)
    os.replace(strangers / "worker-1.public", directory / "worker-1.public")

    assert serves(listener, after)
    with pytest.raises(AuthError, match="refused the key of worker:1"):
        connect(listener, before)


def test_where_the_keys_cannot_be_read_anew_the_old_ones_go_on_to_count(
    listener: TcpListener, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = load(directory, "worker-1")
    (directory / "worker-0.public").unlink()
    (directory / "worker-0.public").write_text("half a certificate")

    assert serves(listener, mine)
    assert "cannot read the keys anew" in caplog.text


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
    assert (
        b"PRIVATE KEY" in mine.secret
        and ssl.PEM_cert_to_DER_cert((tmp_path / "a" / "keys" / "worker-1.public").read_text())
        == mine.public["worker-1"]
    )


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
    "no PEM": ("worker-0.secret", lambda path: path.write_bytes(b"~" * 40), "is no key", "copy it again"),
    "another kind of file": ("ps-0.public", lambda path: path.write_bytes(b"1" * 9000), "is no key", "copy it again"),
    "a secret where a public key should be": (
        "ps-0.public",
        lambda path: path.write_bytes(path.with_suffix(".secret").read_bytes()),
        "ps-0.public is no key",
        "copy it again",
    ),
    "a secret of an older evener": (
        "worker-0.secret",
        lambda path: path.write_bytes(b"D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs\n"),
        "worker-0.secret is a key of an older evener",
        "make new keys with `evener keys new DIR`",
    ),
    "a public key of an older evener": (
        "ps-0.public",
        lambda path: path.write_bytes(b"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID\n"),
        "ps-0.public is a key of an older evener",
        "make new keys with `evener keys new DIR`",
    ),
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
        assert not {line for line in path.read_text().split("\n") if line in out and line}
    assert cli.main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["keys", "new", str(tmp_path / "none"), "--ps", "0"]) == 2
    assert cli.main(["keys"]) == 2


# Who gets in


def test_tasks_of_the_cluster_get_in_and_are_known_by_the_key_they_proved(
    listener: TcpListener, directory: Path
) -> None:
    for name in ("worker-0", "worker-1", "ps-1"):
        assert serves(listener, load(directory, name))


def test_the_seam_passes_keys_through_and_tells_users_of_every_kind(directory: Path) -> None:
    for kind, expected in (("tcp", "worker-1"), ("memory", ""), ("shared", "")):
        with contextlib.closing(transport.listen(kind, keys=load(directory, "ps-0"))) as listener:
            channel, opened = connected(listener, 8, keys=load(directory, "worker-1"), server="ps:0")
            assert transport.user(listener, opened.peer) == expected
            channel.close()


def test_without_keys_a_peer_has_no_name() -> None:
    with contextlib.closing(tcp.listen(insecure=True)) as listener:
        channel, opened = connected(listener, 100)
        assert listener.user(opened.peer) == ""
        channel.close()
        hear(listener, closed(opened.peer))
        with pytest.raises(PeerGone):
            listener.user(opened.peer)


def test_an_unknown_key_is_refused_at_once_and_logged_with_its_address(
    listener: TcpListener, directory: Path, strangers: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (strangers / "ps-0.public").write_bytes((directory / "ps-0.public").read_bytes())  # it knows whom it talks to
    with pytest.raises(AuthError, match=r"ps:0 refused the key of worker:1") as error:
        connect(listener, load(strangers, "worker-1"))
    assert "public keys" in error.value.fix
    assert nobody_came(listener)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "ps:0: refused 127.0.0.1: its key is no task's" in caplog.text
    assert serves(listener, load(directory, "worker-1"))


def test_a_server_with_another_key_is_left_at_once(listener: TcpListener, directory: Path, strangers: Path) -> None:
    with pytest.raises(AuthError, match=r"ps:0 did not prove the key in the config") as error:
        connect(listener, load(strangers, "worker-1"))
    assert listener.address in str(error.value)
    with pytest.raises(AuthError, match=r"ps:1 did not prove"):  # it is ps:0
        connect(listener, load(directory, "worker-1"), server="ps-1")
    assert nobody_came(listener)
    with pytest.raises(SecurityError, match=r"no public key of ps:7"):
        connect(listener, load(directory, "worker-1"), server="ps-7")


def test_a_worker_without_keys_is_told_that_the_server_asks_for_one(listener: TcpListener, directory: Path) -> None:
    with pytest.raises(AuthError, match=r"asks for a key, this task has none"):
        connect(listener, None)
    assert nobody_came(listener) and serves(listener, load(directory, "worker-1"))


def test_a_worker_with_keys_does_not_speak_to_a_server_without(directory: Path) -> None:
    with contextlib.closing(tcp.listen(insecure=True)) as listener:
        with pytest.raises(AuthError, match=r"ps:0 at .* has no keys, worker:1 has some"):
            connect(listener, load(directory, "worker-1"))
        assert nobody_came(listener)


def test_a_server_that_is_not_there_yet_is_no_question_of_keys(directory: Path) -> None:
    listener = tcp.listen(insecure=True)
    listener.close()
    with pytest.raises(Unavailable, match="has not answered") as error:
        tcp.connect(listener.address, *boxes(8), timeout=NEVER, absent=0.0, keys=load(directory, "worker-1"))
    assert "no process listens" in error.value.why


# The handshake


def talk(server: Handshake, client: Handshake) -> None:
    """Carry bytes both ways until both are done."""
    for _ in range(20):
        for source, target in ((client, server), (server, client)):
            give(target, source.outgoing())
        if server.done and client.done:
            return
    raise AssertionError("they come to no end")


def give(handshake: Handshake, data: bytes) -> None:
    while data:
        target = handshake.target()
        count = min(len(target), len(data))
        target[:count] = data[:count]
        handshake.took(count)
        data = data[count:]


def pair_of(directory: Path, other: Path, task: str = "worker-0") -> tuple[Handshake, Handshake]:
    return Handshake(Credentials(load(directory, "ps-0"))), Handshake(Credentials(load(other, task), "ps-0"))


def test_both_ends_learn_who_the_other_is_and_have_one_key_for_each_direction(directory: Path) -> None:
    server, client = pair_of(directory, directory)
    talk(server, client)
    assert (server.task, client.task) == ("worker-0", "ps-0")
    for sender, receiver in ((server, client), (client, server)):
        assert sender.sealing and receiver.opening
        sealed, plain = bytearray(21), bytearray(5)
        sender.sealing.seal(b"hello", b"beside", memoryview(sealed))
        assert b"hello" not in sealed
        receiver.opening.open(memoryview(sealed), b"beside", plain)
        assert plain == b"hello"


def test_no_handshake_is_like_another(directory: Path) -> None:
    """So what was said on one link is nothing on the next."""
    sealed = []
    for _ in range(2):
        server, client = pair_of(directory, directory)
        talk(server, client)
        assert client.sealing
        into = bytearray(21)
        client.sealing.seal(b"hello", b"", memoryview(into))
        sealed.append(bytes(into))
    assert sealed[0] != sealed[1]


def test_a_certificate_counts_byte_for_byte_whatever_openssl_thinks_of_it(directory: Path) -> None:
    """The look of `_know` alone: the certificate has been verified, and is not in the directory."""
    server, client = pair_of(directory, directory)
    server._tasks = {certificate: name for certificate, name in server._tasks.items() if name != "worker-0"}
    with pytest.raises(Unproven, match="no task's"):
        talk(server, client)
    assert not server.done and not client.done


def test_a_certificate_of_the_same_name_is_not_the_same(directory: Path, strangers: Path) -> None:
    (strangers / "ps-0.public").write_bytes((directory / "ps-0.public").read_bytes())
    server, client = pair_of(directory, strangers)
    with pytest.raises(Unproven):
        talk(server, client)


def test_a_client_that_shows_no_certificate_is_refused(directory: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    server, client = pair_of(directory, directory)
    bare = Credentials(load(directory, "worker-0"), "ps-0")
    bare.context = context
    client = Handshake(bare)
    with pytest.raises(Untrusted):
        talk(server, client)
    assert not server.done


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_nothing_older_than_tls_1_3_is_spoken(directory: Path, version: ssl.TLSVersion) -> None:
    mine = Credentials(load(directory, "ps-0"))
    assert mine.context.minimum_version == ssl.TLSVersion.TLSv1_3 and mine.context.num_tickets == 0
    old = Credentials(load(directory, "worker-0"), "ps-0")
    old.context.minimum_version = old.context.maximum_version = version
    with pytest.raises(Untrusted):
        talk(Handshake(mine), Handshake(old))


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01" + (MAX_RECORD + 1).to_bytes(2, "big"),
        b"\x16\x03\x01\0\0",
        (b"\x16\x03\x01" + (1000).to_bytes(2, "big") + b"\x01\0\xff\xff" + bytes(996))
        + (b"\x16\x03\x01" + (1000).to_bytes(2, "big") + bytes(1000)) * (MAX_HANDSHAKE // 1000),
        b"GET / HTTP/1.1\r\n\r\n" + bytes(9000),
        bytes(9000),
    ],
    ids=["a long record", "an empty record", "an endless hello", "http", "zeros"],
)
def test_a_handshake_that_is_none_is_refused_within_a_few_kilobytes(directory: Path, data: bytes) -> None:
    server = Handshake(Credentials(load(directory, "ps-0")))
    with pytest.raises(Untrusted):
        give(server, data)


def test_a_certificate_is_valid_at_any_time_and_belongs_to_no_authority(directory: Path) -> None:
    """A key is good as long as its file lies in the directory; no clock may end a run."""
    certificate = x509.load_der_x509_certificate(load(directory, "ps-0").public["ps-0"])
    assert certificate.not_valid_before_utc.year == 2000 and certificate.not_valid_after_utc.year == 9999
    assert certificate.issuer == certificate.subject and len(certificate.extensions) == 0


def test_bytes_of_any_kind_at_an_encrypted_port_are_no_message_and_are_logged(
    listener: TcpListener, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(listener.address.rpartition(":")[2])
    plain = greeting(keys=False) + HEAD.pack(OPEN, 8) + pack_sizes([100])
    secure = greeting(keys=True)
    for data in (b"", secure, secure + os.urandom(1000), plain, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            before = len(caplog.records)
            while len(caplog.records) == before:
                assert wait([listener], PATIENCE)
                assert listener.receive() == []
    assert "none of ours, and left" in caplog.text and "it sent a greeting without keys" in caplog.text
    assert nobody_came(listener) and serves(listener, load(directory, "worker-1"))


def test_close_leaves_no_descriptor(directory: Path) -> None:
    def once() -> None:
        listener = tcp.listen(keys=load(directory, "ps-0"))
        assert serves(listener, load(directory, "worker-0"))
        listener.close()

    once()
    tasks, files = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    once()
    assert len(os.listdir("/proc/self/task")) == tasks
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_process_may_end_without_closing_anything(listener: TcpListener, directory: Path) -> None:
    code = f"""
import sys
from evener import transport
from evener.transport.channel import Memory, Ranges
from evener.transport.keys import load
r = Ranges(Memory(8), ((0, 8),))
a = transport.listen("tcp", keys=load({str(directory)!r}, "ps-1"))
b = transport.connect(sys.argv[1], r, r, timeout=60, keys=load({str(directory)!r}, "worker-0"))
b.send(b"x")
"""
    with worker(listener.address, 0, code) as child:
        events = hear(listener, lambda events: len(events) == 3)
        assert [type(event) for event in events] == [Opened, Arrived, Closed]
        assert child.wait(PATIENCE) == 0


# Addresses


EXPOSED = ["0.0.0.0", "192.0.2.1", "[::]", "10.0.0.9"]


@pytest.mark.parametrize("host", EXPOSED)
def test_beyond_this_machine_a_server_without_keys_does_not_listen(host: str) -> None:
    with pytest.raises(SecurityError, match=r"refusing to listen on .* without keys") as error:
        transport.listen("tcp", f"tcp://{host}:0")
    assert "evener keys new DIR" in error.value.fix and "--insecure" in error.value.fix


def test_insecure_is_said_in_the_log_at_each_start(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        transport.listen("tcp", "tcp://0.0.0.0:0", insecure=True).close()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "without keys, as --insecure says" in caplog.text


def test_with_keys_a_server_listens_anywhere_and_says_nothing_of_it(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport.listen("tcp", "tcp://0.0.0.0:0", keys=load(directory, "ps-0")).close()
    assert not caplog.records


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
def test_without_keys_other_users_of_this_machine_are_strangers_too(host: str) -> None:
    with pytest.raises(SecurityError, match="without keys") as refused:
        transport.listen("tcp", f"tcp://{host}:0")
    assert "other users of this machine reach this address" in refused.value.why
    transport.listen("tcp", f"tcp://{host}:0", insecure=True).close()


def test_no_port_of_this_process_is_open_to_all_addresses(directory: Path) -> None:
    with (
        contextlib.closing(transport.listen("tcp", insecure=True)),
        contextlib.closing(tcp.listen(keys=load(directory, "ps-0"))) as listener,
    ):
        channel, _ = connected(listener, 8, keys=load(directory, "worker-0"))
        mine = listeners_of_this_process()
        assert len(mine) >= 2
        assert not {address for address in mine if set(address) <= {"0"}}
        channel.close()
    with contextlib.closing(transport.listen("tcp", "tcp://0.0.0.0:0", insecure=True)):
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
    with contextlib.closing(tcp.listen("tcp://[::1]:0", insecure=True)) as listener:
        assert listener.address.startswith("tcp://[::1]:")
        channel, opened = connected(listener, 8)
        assert opened.description == "::1"
        channel.close()
    with contextlib.closing(tcp.listen("tcp://[::1]:0", keys=load(directory, "ps-0"))) as listener:
        assert serves(listener, load(directory, "worker-0"))
