"""What anyone can do to a port, or to a UNIX socket: the third target of `fuzzing`.

Raw sockets say plain bytes, half a handshake, a whole one and then garbage, ZMTP frames with lies in their lengths,
mutated messages of ours, 64 frames of 1 MB, one byte and then nothing; some connect and leave. Meanwhile a worker
pushes: it is answered every time, and its gradient is never another's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from evener.transport.zeromq_wire import OPEN, PAYLOAD, PLAIN, first_frame, pack_sizes
from fuzzing import a_corpus
from mutations import Mutator

from evener import transport
from evener.transport import packets, shared, zeromq
from evener.transport.channel import Arrived, Closed, Incoming, Listener, Memory, Opened, Ranges, wait
from evener.transport.keys import Keys, load, new

NBYTES = 1000


def greeting(mechanism: bytes, *, version: bytes = b"\x03\x01") -> bytes:
    """The first 64 bytes of ZMTP (RFC 23)."""
    return b"\xff" + bytes(8) + b"\x7f" + version + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    """One ZMTP frame."""
    flags = more | (command << 2)
    if len(body) > 255:
        return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body
    return bytes([flags, len(body)]) + body


def ready() -> bytes:
    """What a DEALER says once it was greeted."""
    properties = [(b"Socket-Type", b"DEALER"), (b"Identity", b"")]
    body = b"".join(bytes([len(name)]) + name + struct.pack(">I", len(value)) + value for name, value in properties)
    return frame(b"\x05READY" + body, command=True)


#: One frame of a message that has more.
MEGABYTE = frame(bytes(1 << 20), more=True)


class Guest:
    """A worker that belongs, and the server that knows no other."""

    def __init__(self, listener: Listener, keys: Keys | None) -> None:
        self.listener, self.count = listener, 0
        self.memory = Memory(2 * NBYTES)
        parts = Ranges(self.memory, ((0, NBYTES),)), Ranges(self.memory, ((NBYTES, NBYTES),))
        self.channel = transport.connect(listener.address, *parts, keys=keys)
        (opened,) = self._hear(Opened)
        self.peer = opened.peer
        listener.admit(self.peer, (NBYTES,))

    def _hear(self, kind: type) -> list[Incoming]:
        for _ in range(1000):
            if wait([self.listener], 0.05) and (found := [e for e in self.listener.receive() if isinstance(e, kind)]):
                return found
        raise AssertionError(f"no {kind.__name__} within 50 s")

    def push(self) -> list[Incoming]:
        """A round trip; the events of others that came meanwhile."""
        self.count += 1
        byte = bytes([self.count % 256])
        self.memory.view[:NBYTES] = byte * NBYTES
        self.channel.send(b"push", payload=True)
        others: list[Incoming] = []
        mine = Arrived(self.peer, b"push", True)
        for _ in range(1000):
            if wait([self.listener], 0.05):
                others += self.listener.receive()
            if mine in others:
                others.remove(mine)
                break
        assert bytes(self.listener.inbox(self.peer)[0]) == byte * NBYTES, "another's bytes in its gradient"
        self.listener.send(self.peer, b"release", [memoryview(byte * NBYTES)])
        assert self.channel.receive(30.0) == b"release", "it was not answered"
        return others


@contextlib.contextmanager
def guest(listener: Listener, keys: Keys | None = None) -> Iterator[Guest]:
    one = Guest(listener, keys)
    try:
        yield one
    finally:
        one.channel.close()
        listener.close()


class Crowd:
    """Strangers at a TCP port: each a connection that says up to 20 frames."""

    def __init__(self, rng: Random, port: int, mechanism: bytes) -> None:
        self.rng, self.mutator, self.port = rng, Mutator(rng), port
        self.mechanism, self.headers = mechanism, a_corpus()
        self.outcomes: Counter[str] = Counter()
        self.heavy = False  # has one said 64 MB just now? Each such message costs 64 MB while it is read

    def come(self, stack: contextlib.ExitStack, frames: int) -> int:
        """One stranger, who stays until the stack is closed; gives how often it speaks: once, or so many frames."""
        rng = self.rng
        kind = rng.choice(("plain", "leaves", "half a greeting", "garbage", "frames", "frames", "frames", "one byte"))
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 5.0))
        sock.settimeout(0.2)  # a server that has cut us off does not read
        frames = frames if kind == "frames" else 1
        self.outcomes[kind] += frames
        hand = greeting(rng.choice((self.mechanism, self.mechanism, b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", b"\xff")))
        with contextlib.suppress(OSError):
            match kind:
                case "plain":
                    sock.sendall(rng.randbytes(rng.choice((1, 9, 100, 5000))))
                case "leaves":
                    sock.close()
                case "half a greeting":
                    sock.sendall(hand[: rng.randrange(64)])
                case "one byte":
                    sock.sendall(b"\xff")
                case "garbage":
                    sock.sendall(hand + rng.randbytes(rng.choice((1, 30, 3000))))
                case _:
                    said = ready() if self.mechanism == b"NULL" else self.curve_command()
                    sock.sendall(greeting(self.mechanism) + said)
                    if rng.random() < 0.01 and not self.heavy:
                        self.heavy = True
                        sock.settimeout(5.0)
                        for _ in range(64):
                            sock.sendall(MEGABYTE)
                        sock.sendall(frame(b""))
                        self.outcomes["64 frames of 1 MB"] += 1
                    if rng.random() < 0.5:
                        sock.sendall(frame(first_frame(OPEN, pack_sizes([NBYTES]))))  # as a worker begins
                    for _ in range(frames):
                        sock.sendall(self.message())
        return frames

    def curve_command(self) -> bytes:
        """What may come first where keys are asked, spoilt: a client's HELLO, or another command."""
        rng = self.rng
        name = rng.choice((b"\x05HELLO", b"\x08INITIATE", b"\x07MESSAGE", b"\x05READY", b"\x05ERROR", b"\xffHELLO"))
        return frame(name + rng.randbytes(rng.choice((0, 10, 194, 194, 257, 100_000))), command=True)

    def message(self) -> bytes:
        """A ZMTP message: one of ours, spoilt at one of three levels."""
        rng = self.rng
        kind = rng.choice((OPEN, OPEN, PLAIN, PAYLOAD, rng.randrange(256)))
        sizes = [rng.choice((NBYTES, 0, 2**64 - 1, rng.randrange(2**40))) for _ in range(rng.choice((0, 1, 1, 300)))]
        header = pack_sizes(sizes) if kind == OPEN else self.mutator.frame(self.headers)
        first = bytearray(first_frame(kind % 256, header))
        if rng.random() < 0.4:
            first[rng.randrange(10)] = rng.randrange(256)  # in the preamble
        parts = [bytes(first), *(rng.randbytes(rng.choice((0, 7, NBYTES))) for _ in range(rng.choice((0, 0, 1, 3))))]
        wire = bytearray(b"".join(frame(part, more=part is not parts[-1]) for part in parts))
        if rng.random() < 0.1:
            wire[rng.randrange(min(len(wire), 9))] = rng.randrange(256)  # in its flags or its length
        if rng.random() < 0.02:
            wire += b"\x02" + struct.pack(">Q", rng.choice((5 << 20, 2**40, 2**63, 2**64 - 1))) + bytes(100)
        return bytes(wire)


def _besiege(listener: zeromq.ZeroMQListener, keys: Keys | None, frames: int, seed: int) -> Counter[str]:
    crowd = Crowd(Random(f"port {seed}"), int(listener.address.rpartition(":")[2]), b"CURVE" if keys else b"NULL")
    with guest(listener, keys) as worker:
        left, opened = frames, {worker.peer}
        while left > 0:
            crowd.heavy = False
            with contextlib.ExitStack() as stack:
                for _ in range(8):
                    left -= crowd.come(stack, min(20, max(left, 1)))
                events = worker.push()
            for event in events + worker.push():
                assert event.peer != worker.peer, f"seed {seed}: {event} of a worker that did nothing wrong"
                assert not keys, f"seed {seed}: {event} of somebody without a key"
                if isinstance(event, Opened):
                    opened.add(event.peer)
                else:
                    assert event.peer in opened, f"seed {seed}: {event} of nobody"
                    assert isinstance(event, Closed) or not event.payload, f"seed {seed}: a stranger's payload"
                crowd.outcomes[type(event).__name__] += 1
            assert len(listener._peers) <= 1 + 9 * 20 + zeromq.MAX_STRANGERS
    return crowd.outcomes


def fuzz_port(frames: int, seed: int) -> Counter[str]:
    """A port without keys."""
    return _besiege(zeromq.listen(), None, frames, seed)


def fuzz_port_with_keys(frames: int, seed: int) -> Counter[str]:
    """A port with keys, and a crowd without."""
    with tempfile.TemporaryDirectory() as directory:
        new(Path(directory) / "keys", ["ps-0", "worker-0"])
        mine, theirs = (load(Path(directory) / "keys", name) for name in ("ps-0", "worker-0"))
        return _besiege(zeromq.listen(keys=mine), theirs, frames, seed)


def fuzz_shared(frames: int, seed: int) -> Counter[str]:
    """The UNIX socket of one host: spoilt offers of memory, then spoilt packets."""
    rng, listener = Random(f"shared {seed}"), shared.listen()
    mutator, headers, outcomes = Mutator(rng), a_corpus(), Counter[str]()
    before = len(os.listdir("/proc/self/fd"))
    with guest(listener) as worker:
        for number in range(frames):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            memory = Memory(2 * NBYTES)
            with contextlib.closing(sock), contextlib.closing(memory):
                sock.connect(packets.abstract(listener.address))
                sock.settimeout(0.2)
                parts = [rng.choice((0, NBYTES, 2 * NBYTES, 2**64 - 1)) if rng.random() < 0.1 else n for n in
                         (0, NBYTES, NBYTES, NBYTES)]  # fmt: skip
                offer = bytearray(packets.HEAD.pack(packets.MAGIC, packets.VERSION, 1) + struct.pack("<4Q", *parts))
                for _ in range(rng.choice((0, 0, 1, 2))):
                    offer[rng.randrange(len(offer))] = rng.randrange(256)
                with contextlib.suppress(OSError):
                    socket.send_fds(
                        sock, [bytes(offer)[: rng.choice((40, 99, 99, 99))]], [memory.fd] * rng.choice((0, 1, 1, 2, 3))
                    )
                    sock.send(bytes([rng.choice((0, 0, 0, 1, 2))]) + mutator.frame(headers))
                events = []
                while wait([listener], 0.0):
                    events += listener.receive()
                for event in events:
                    assert event.peer != worker.peer, f"seed {seed}: {event}"
                    assert not isinstance(event, Arrived) or not event.payload, f"seed {seed}: a stranger's payload"
                    outcomes[type(event).__name__] += 1
            if number % 50 == 0:
                worker.push()
        for event in worker.push():
            outcomes[type(event).__name__] += 1
        left = len(os.listdir("/proc/self/fd")) - before
        assert left < 20, f"seed {seed}: {left} descriptors more than before"
    return outcomes
