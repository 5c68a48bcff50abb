"""Who may speak on a link between hosts: CURVE on the wire, and at the server's door a list of the cluster's keys.

Both ends prove a key before a byte of theirs reaches us. ZeroMQ asks about each client's key by a protocol of its own
(ZAP, RFC 27): a request to an inproc socket, answered by one thread per server. With a domain and ENFORCE_DOMAIN
nobody gets in while nobody answers; without the two, everybody would.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

import zmq
from zmq.utils import z85

from evener.errors import AuthError, SecurityError
from evener.transport.channel import Complaints
from evener.transport.keys import Keys, named, said

DOMAIN = b"evener"
ENDPOINT = "inproc://zeromq.zap.01"

Settings = dict[zmq.SocketOption, int | bytes]


def server_settings(keys: Keys) -> Settings:
    return {
        zmq.CURVE_SERVER: 1,
        zmq.CURVE_SECRETKEY: keys.secret,
        zmq.ZAP_DOMAIN: DOMAIN,
        zmq.ZAP_ENFORCE_DOMAIN: 1,
    }


def client_settings(keys: Keys, server: str) -> Settings:
    """Raises SecurityError when we do not know the key by which the server must prove itself."""
    if (name := named(server)) not in keys.public:
        raise SecurityError(
            f"{keys.directory} has no public key of {said(name)}.",
            why="without it anyone could answer in its place.",
            fix=f"copy {name}.public there, or make keys for as many tasks as the cluster has.",
        )
    return {
        zmq.CURVE_SERVERKEY: keys.public[name],
        zmq.CURVE_PUBLICKEY: keys.public[keys.name],
        zmq.CURVE_SECRETKEY: keys.secret,
    }


class Gatekeeper:
    """The thread that answers ZeroMQ: this key is that task's, or nobody's.

    It is asked from before the server is bound until its context ends.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> None:
        self._tasks = {z85.decode(key): name.encode() for name, key in keys.public.items()}
        self._me = said(keys.name)
        self._complaints = Complaints(logging.getLogger(__name__))
        self._questions = context.socket(zmq.REP)
        self._questions.bind(ENDPOINT)
        self._thread = threading.Thread(target=self._serve, name="evener-keys", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                question = self._questions.recv_multipart()
                name = self._task(question)
                status = b"200" if name else b"400"
                self._questions.send_multipart([b"1.0", question[1], status, b"", name, b""])
        except zmq.ContextTerminated:
            pass  # the server was closed
        finally:
            self._questions.close(0)

    def _task(self, question: list[bytes]) -> bytes:
        """The task that the key in a question belongs to, or nothing.

        A question: version, request, domain, peer's address, routing id, mechanism, and for CURVE the client's key.
        """
        if len(question) != 7 or question[2] != DOMAIN or question[5] != b"CURVE":
            return b""
        name = self._tasks.get(question[6], b"")
        if not name:
            self._complaints.say(f"{self._me}: refused {question[3].decode(errors='replace')}: its key is no task's")
        return name

    def join(self) -> None:
        """Wait for the thread, after its context has ended."""
        self._thread.join()


def mechanism(ip: str, port: int) -> bytes:
    """How whoever listens there would have a handshake (b"CURVE", b"NULL"); nothing if it is no ZeroMQ of today.

    We say the first bytes of a greeting (ZMTP 3, RFC 23) and read the 32 that follow on them.
    """
    greeting, deadline = b"", time.monotonic() + 1.0
    try:
        with socket.create_connection((ip, port), 1.0) as connection:
            connection.sendall(b"\xff" + bytes(7) + b"\x01\x7f\x03\x00")
            while len(greeting) < 32:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                if not (more := connection.recv(32 - len(greeting))):
                    return b""
                greeting += more
    except OSError:
        return b""
    return greeting[12:].rstrip(b"\0") if greeting[:1] == b"\xff" and greeting[10] >= 3 else b""


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
        why=f"whoever listens there has another secret than that of {keys.directory / name}.public: "
        "three handshakes in a row broke off.",
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
