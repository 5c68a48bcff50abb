"""Who is at the other end: TLS 1.3 with a certificate on both sides, each of them pinned, and then a key each way.

A certificate is only the wrapping of a key (`keys`): no authority signs it and no name in it counts. What a peer
presents must be, byte for byte, the one that our directory of keys has for a task; for which, it tells us who it is.

TLS ends where the link begins. Each end draws a fresh AES key for what it will send and says it inside TLS; then both
go on with `tcp_seal`. Why not TLS to the end: its records of 16 KB cost a copy and a call each, 1.5 GB/s against 3-10.
Why not Noise, which would say the same with less: no library for Python is kept. Why not ZeroMQ's CURVE: see
ARCHITECTURE.md. The bytes of TLS go through memory, one whole record at a time, so that we know where the last one ends
and never wait: a server that does a thousand of these at once does them between two updates.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from evener.errors import AuthError, SecurityError
from evener.transport.keys import Keys, load, named, pem, said
from evener.transport.tcp_seal import KEY_BYTES, Sealing

#: Bytes that somebody who has proven nothing may make us keep: of one record, and of a whole handshake.
MAX_RECORD, MAX_HANDSHAKE = 4096, 16384
RECORD_HEAD = 5


class Untrusted(ValueError):
    """A handshake that will not succeed."""


class KeyRefused(Untrusted):
    """The other end does not know our key."""


class Unproven(Untrusted):
    """The other end has another key than it should, or none."""


def complaint(error: ValueError) -> str:
    """What a server's log says of a peer that was refused for this."""
    if isinstance(error, Unproven):
        return "its key is no task's"
    if isinstance(error, KeyRefused):
        return f"it does not take our key ({error})"
    return f"it sent {error}"


class Credentials:
    """What one task shows of itself and accepts of others; made once for many handshakes."""

    def __init__(self, keys: Keys, server: str = "") -> None:
        """Without `server`: as a server, to all tasks. With it: to that server. Raises SecurityError."""
        self.name, self.server_side = keys.name, not server
        self._directory, self._as_of = keys.directory, changed(keys.directory)
        accepted = dict(keys.public)
        if server:
            if (name := named(server)) not in keys.public:
                raise SecurityError(
                    f"{keys.directory} has no public key of {said(name)}.",
                    why="without it anyone could answer in its place.",
                    fix=f"copy {name}.public there, or make keys for as many tasks as the cluster has.",
                )
            accepted = {name: keys.public[name]}
        self.tasks = {certificate: name for name, certificate in accepted.items()}
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self.server_side else ssl.PROTOCOL_TLS_CLIENT)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_REQUIRED
        if self.server_side:
            self.context.num_tickets = 0  # nobody comes back without his key, and no record follows our last
        self.context.load_verify_locations(cadata="".join(pem(one) for one in accepted.values()))
        _load(self.context, pem(keys.public[keys.name]).encode() + keys.secret)

    def renewed(self) -> Credentials:
        """These; or new ones, if a file was put into the directory of keys since. Of a server.

        A task that comes to stand on another machine makes itself a new key there. A key that was known goes on to
        mean the task that it has meant, whatever its file is called now. Raises SecurityError.
        """
        if changed(self._directory) == self._as_of:
            return self
        new = Credentials(load(self._directory, self.name))
        new.tasks = {certificate: self.tasks.get(certificate, name) for certificate, name in new.tasks.items()}
        return new


def changed(directory: Path) -> int:
    """When a file was last put into a directory, or taken out; 0: it is not there (any more)."""
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0


def _load(context: ssl.SSLContext, chain: bytes) -> None:
    """OpenSSL takes a secret from a file only: this one has no name and no place on a disk."""
    fd = os.memfd_create("evener-keys", os.MFD_CLOEXEC)
    try:
        os.write(fd, chain)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


class Handshake:
    """One end of one handshake. `task`, `sealing` and `opening` are there when it is done."""

    def __init__(self, credentials: Credentials) -> None:
        self.task = ""
        self.sealing: Sealing | None = None
        self.opening: Sealing | None = None
        self._tasks, self._server_side = credentials.tasks, credentials.server_side
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = credentials.context.wrap_bio(self._incoming, self._outgoing, server_side=self._server_side)
        self._key = os.urandom(KEY_BYTES)  # of what we will send
        self._record, self._filled, self._total = bytearray(RECORD_HEAD), 0, 0
        if not self._server_side:
            self._advance()

    #: As with a reader; a few bytes are not worth a word with the kernel.
    missing = 1

    @property
    def done(self) -> bool:
        return self.opening is not None

    def outgoing(self) -> bytes:
        """What the other end must be sent now; also after an error, which it should know of."""
        return self._outgoing.read()

    def target(self) -> memoryview:
        return memoryview(self._record)[self._filled :]

    def took(self, nbytes: int) -> None:
        """Raises Untrusted."""
        self._filled += nbytes
        if self._filled < len(self._record):
            return
        if self._filled == RECORD_HEAD:
            length = int.from_bytes(self._record[3:5], "big")
            self._total += length
            if not 0 < length <= MAX_RECORD or self._total > MAX_HANDSHAKE:
                raise Untrusted(f"a record of {length} bytes in a handshake")
            self._record = bytearray(self._record + bytes(length))
            return
        self._incoming.write(self._record)
        self._record, self._filled = bytearray(RECORD_HEAD), 0
        self._advance()

    def _advance(self) -> None:
        """Go as far as what has come allows."""
        try:
            if not self.task:
                self._tls.do_handshake()
                self._know()
                self._tls.write(self._key)
            key = self._tls.read(KEY_BYTES)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLCertVerificationError as error:
            raise Unproven("a certificate that is no task's") from error
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                raise KeyRefused(f"an alert: {error.reason}") from error
            raise Untrusted(f"no handshake: {error.reason or error}") from error
        if len(key) != KEY_BYTES or self._tls.pending():
            raise Untrusted(f"a key of {len(key)} bytes")
        self.sealing, self.opening = Sealing(self._key), Sealing(key)

    def _know(self) -> None:
        """Which task it is. OpenSSL has looked at the certificate already; this look is the one that counts."""
        shown = self._tls.getpeercert(binary_form=True)
        if shown is None or shown not in self._tasks:
            raise Unproven("a certificate that is no task's")
        self.task = self._tasks[shown]


def refused(where: str, keys: Keys, server: str) -> AuthError:
    return AuthError(
        f"{said(named(server))} refused the key of {said(keys.name)}; it listens at {where}.",
        why=f"{keys.name}.public is not among the public keys that it was started with, or differs there.",
        fix="copy the same public keys to all machines and start the server again.",
    )


def unproven(where: str, keys: Keys, server: str) -> AuthError:
    name = named(server)
    return AuthError(
        f"{said(name)} did not prove the key in the config; {where} was asked.",
        why=f"whoever listens there has another secret than that of {keys.directory / name}.public.",
        fix="check that the address is the server's, and copy the same public keys to all machines.",
    )


def one_sided(where: str, keys: Keys | None, server: str) -> AuthError:
    """One end has keys, the other has none."""
    if keys is None:
        return AuthError(
            f"{said(named(server))} at {where} asks for a key, this task has none.",
            fix="start this task with the keys of the cluster.",
        )
    return AuthError(
        f"{said(named(server))} at {where} has no keys, {said(keys.name)} has some.",
        why="without keys it could be anyone, and everyone could listen.",
        fix="start all tasks with keys, or none.",
    )
