"""What anyone can do to a port, or to a UNIX socket: the third target of `fuzzing`.

Raw sockets say plain bytes, half a greeting, a whole one and then garbage, records of TLS with lies in their lengths,
mutated messages of ours, headers and payloads of 64 MB, one byte and then nothing; some connect and leave, some with a
reset. Meanwhile a worker pushes: it is answered every time, and its gradient is never another's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from fuzzing import a_corpus
from mutations import Mutator

from evener import transport
from evener.transport import packets, shared, tcp
from evener.transport.channel import Arrived, Channel, Closed, Incoming, Listener, Memory, Opened, Ranges, wait
from evener.transport.keys import Keys, load, new
from evener.transport.tcp_limits import Caps
from evener.transport.tcp_wire import HEAD, OPEN, PAYLOAD, PLAIN, greeting, pack_sizes

NBYTES = 1000


def record(body: bytes, kind: int = 0x16) -> bytes:
    """One record of TLS."""
    return bytes([kind, 3, 1]) + struct.pack(">H", len(body) % 65536) + body


class Guest:
    """A worker that belongs, and the server that knows no other."""

    def __init__(self, listener: Listener, keys: Keys | None) -> None:
        self.listener, self.count = listener, 0
        self.memory = Memory(2 * NBYTES)
        parts = Ranges(self.memory, ((0, NBYTES),)), Ranges(self.memory, ((NBYTES, NBYTES),))
        made: list[Channel] = []
        thread = threading.Thread(target=lambda: made.append(transport.connect(listener.address, *parts, keys=keys)))
        thread.start()
        (opened,) = self._hear(Opened)
        thread.join()
        (self.channel,) = made
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

    def __init__(self, rng: Random, port: int, *, keys: bool) -> None:
        self.rng, self.mutator, self.port, self.keys = rng, Mutator(rng), port, keys
        self.headers = a_corpus()
        self.outcomes: Counter[str] = Counter()
        self.heavy = False  # has one said 64 MB just now?

    def come(self, stack: contextlib.ExitStack, frames: int) -> int:
        """One stranger, who stays until the stack is closed; gives how often it speaks: once, or so many frames."""
        rng = self.rng
        kind = rng.choice(("plain", "leaves", "half a greeting", "garbage", "frames", "frames", "frames", "one byte"))
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 5.0))
        sock.settimeout(0.2)  # a server that has cut us off does not read
        frames = frames if kind == "frames" else 1
        self.outcomes[kind] += frames
        hand = bytearray(greeting(keys=rng.random() < 0.5))
        if rng.random() < 0.5:
            hand[rng.randrange(8)] = rng.randrange(256)
        with contextlib.suppress(OSError):
            match kind:
                case "plain":
                    sock.sendall(rng.randbytes(rng.choice((1, 9, 100, 5000))))
                case "leaves":
                    if rng.random() < 0.5:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
                case "half a greeting":
                    sock.sendall(hand[: rng.randrange(8)])
                case "one byte":
                    sock.sendall(b"E")
                case "garbage":
                    sock.sendall(bytes(hand) + rng.randbytes(rng.choice((1, 30, 3000))))
                case _:
                    sock.sendall(greeting(keys=self.keys))
                    if rng.random() < 0.7:
                        sock.sendall(self.first_words())
                    if rng.random() < 0.01 and not self.heavy:
                        self.heavy = True
                        sock.sendall(HEAD.pack(rng.choice((PLAIN, PAYLOAD, OPEN)), rng.choice((1 << 26, 100))))
                        for _ in range(64):
                            sock.sendall(bytes(1 << 20))
                        self.outcomes["64 MB"] += 1
                    for _ in range(frames):
                        sock.sendall(self.message())
        return frames

    def first_words(self) -> bytes:
        """As a worker begins; where keys are asked, what may come first there, spoilt."""
        rng = self.rng
        if not self.keys:
            return HEAD.pack(OPEN, 8) + pack_sizes([NBYTES])
        body = rng.randbytes(rng.choice((0, 1, 100, 1000, 4097, 65535)))
        hello = b"\x01\x00" + struct.pack(">H", len(body) % 65536) + b"\x03\x03" + body
        return record(rng.choice((body, hello)), rng.choice((0x16, 0x16, 0x15, 0x17, 0x14, rng.randrange(256))))

    def message(self) -> bytes:
        """One of ours, spoilt in its header, its head or its length."""
        rng = self.rng
        kind = rng.choice((OPEN, OPEN, PLAIN, PLAIN, PAYLOAD, rng.randrange(256)))
        sizes = [rng.choice((NBYTES, 0, 2**64 - 1, rng.randrange(2**40))) for _ in range(rng.choice((0, 1, 1, 300)))]
        header = pack_sizes(sizes) if kind == OPEN else self.mutator.frame(self.headers)
        wire = bytearray(HEAD.pack(kind, len(header)) + header)
        if rng.random() < 0.3:
            wire += rng.randbytes(rng.choice((7, NBYTES)))
        if rng.random() < 0.2:
            wire[rng.randrange(HEAD.size)] = rng.randrange(256)
        if rng.random() < 0.02:
            wire += HEAD.pack(PLAIN, rng.choice((5 << 20, 2**31, 2**32 - 1))) + bytes(100)
        return bytes(wire)


def _besiege(listener: tcp.TcpListener, keys: Keys | None, frames: int, seed: int) -> Counter[str]:
    crowd = Crowd(Random(f"port {seed}"), int(listener.address.rpartition(":")[2]), keys=keys is not None)
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
            assert len(listener._links) <= 1 + Caps().half_open + Caps().waiting
    return crowd.outcomes


def fuzz_port(frames: int, seed: int) -> Counter[str]:
    """A port without keys."""
    return _besiege(tcp.listen(insecure=True), None, frames, seed)


def fuzz_port_with_keys(frames: int, seed: int) -> Counter[str]:
    """A port with keys, and a crowd without."""
    with tempfile.TemporaryDirectory() as directory:
        new(Path(directory) / "keys", ["ps-0", "worker-0"])
        mine, theirs = (load(Path(directory) / "keys", name) for name in ("ps-0", "worker-0"))
        return _besiege(tcp.listen(keys=mine), theirs, frames, seed)


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
