"""How long a push and its release take: one server process, one worker process, this host.

Prints milliseconds per round trip (mean of `--rounds`, and the fastest of its ten parts, which a busy machine disturbs
least), with payloads of the size of a small and of a larger MLP (79,510 and 397,510 floats) in both directions. The
server copies its parameters into the answer and does nothing else. Targets: shared 0.24 ms, tcp 0.7 of plain sockets
for 1.6 MB (two workers, DESIGN 5).

tcp+keys is the same link with keys (encrypted); target: twice what ZeroMQ's CURVE moved (0.7 GB/s).
`--frames` tries other sizes of the sealed pieces, in KB.

    python benchmarks/transport_roundtrip.py [--rounds 2000] [--kinds shared tcp tcp+keys] [--frames 512 1024]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection

from evener import transport
from evener.devices import prepare_process
from evener.transport import keys, tcp_wire
from evener.transport.channel import Arrived, Closed, Memory, Opened, Ranges, wait

KINDS = ["shared", "tcp", "tcp+keys"]
SIZES = {"318 KB": 4 * 79_510, "1.6 MB": 4 * 397_510}


def keys_of(task: str, directory: str) -> keys.Keys | None:
    """The keys of one end, if there is a directory of them."""
    return keys.load(directory, task) if directory else None


def serve(kind: str, nbytes: int, pipe: Connection, directory: str, frame: int) -> None:
    """Answer every push with the parameters until the worker leaves."""
    prepare_process(1, serves=True)  # as a ps task does
    parameters = [memoryview(bytearray(nbytes))]
    tcp_wire.CHUNK = frame
    mine = keys_of("ps-0", directory)
    listener = transport.listen(kind, keys=mine, insecure=mine is None)
    pipe.send(listener.address)
    while True:
        wait([listener], 10.0)
        for event in listener.receive():
            match event:
                case Opened(peer):
                    listener.admit(peer, (nbytes,))
                case Arrived(peer):
                    listener.send(peer, b"release", parameters)
                case Closed():
                    listener.close()
                    return


def measure(kind: str, nbytes: int, rounds: int, frame: int) -> list[float]:
    """Seconds per round trip, in ten parts."""
    kind, _, keyed = kind.partition("+")
    with tempfile.TemporaryDirectory() as directory:
        keys.new(directory, ["ps-0", "worker-0"])
        return exchange(kind, nbytes, rounds, directory if keyed else "", frame)


def exchange(kind: str, nbytes: int, rounds: int, directory: str, frame: int) -> list[float]:
    here, there = multiprocessing.Pipe()
    prepare_process(1)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(kind, nbytes, there, directory, frame))
    server.start()
    tcp_wire.CHUNK = frame
    memory = Memory(2 * nbytes)
    boxes = Ranges(memory, ((0, nbytes),)), Ranges(memory, ((nbytes, nbytes),))
    channel = transport.connect(here.recv(), *boxes, keys=keys_of("worker-0", directory))
    channel.send(b"hello")  # so that the server has admitted us before the first payload
    channel.receive(10.0)
    parts = []
    for part in range(11):
        start = time.perf_counter()
        for _ in range(rounds // 10):
            channel.send(b"push", payload=True)
            if channel.receive(10.0) is None:
                raise SystemExit("the server did not answer")
        if part:  # the first one warms up
            parts.append((time.perf_counter() - start) / (rounds // 10))
    channel.close()
    server.join(10.0)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--frames", nargs="*", type=int, default=[tcp_wire.CHUNK >> 10], metavar="KB")
    options = parser.parse_args()
    print(f"{'transport':<12} {'frames KB':>9} {'payload':>8} {'mean ms':>9} {'best ms':>9}")
    for kind in options.kinds:
        for frame in [0] if kind == "shared" else options.frames:
            for name, nbytes in SIZES.items():
                parts = measure(kind, nbytes, options.rounds, frame << 10)
                row = f"{kind:<12} {frame or '-':>9} {name:>8}"
                print(f"{row} {1e3 * sum(parts) / len(parts):9.3f} {1e3 * min(parts):9.3f}", flush=True)


if __name__ == "__main__":
    main()
