"""What evener's links between hosts move: as plain_sockets.py, with a Listener and Channels.

python evener_link.py serve ADDRESS PORT NBYTES CLIENTS [KEYS]
python evener_link.py ask ADDRESS PORT NBYTES SECONDS [KEYS]
"""

from __future__ import annotations

import json
import sys
import time

from evener import transport
from evener.devices import prepare_process
from evener.transport import keys as keys_module
from evener.transport.channel import Arrived, Closed, Memory, Opened, Ranges, wait


def serve(address: str, port: int, nbytes: int, clients: int, keys: keys_module.Keys | None) -> None:
    parameters = [memoryview(b"x" * nbytes)]
    listener = transport.listen("tcp", f"tcp://{address}:{port}", keys=keys, insecure=keys is None)
    left = 0
    while left < clients:
        wait([listener], 10.0)
        for event in listener.receive():
            match event:
                case Opened(peer):
                    listener.admit(peer, (nbytes,))
                case Arrived(peer):
                    listener.send(peer, b"release", parameters)
                case Closed():
                    left += 1
    listener.close()


def ask(address: str, port: int, nbytes: int, seconds: float, keys: keys_module.Keys | None) -> None:
    memory = Memory(2 * nbytes)
    boxes = Ranges(memory, ((0, nbytes),)), Ranges(memory, ((nbytes, nbytes),))
    channel = transport.connect(f"tcp://{address}:{port}", *boxes, timeout=30.0, keys=keys)
    channel.send(b"hello")  # so that the server has admitted us before the first payload
    channel.receive(10.0)
    print("go", flush=True)
    rounds, since = 0, time.monotonic()
    while time.monotonic() - since < seconds:
        channel.send(b"push", payload=True)
        assert channel.receive(10.0) is not None
        rounds += 1
    print(json.dumps({"rate": rounds / (time.monotonic() - since), "count": rounds}), flush=True)
    channel.close()


if __name__ == "__main__":
    role, where, *words = sys.argv[1:]
    prepare_process(1, serves=role == "serve")  # as every task does
    mine = keys_module.load(words[3], "ps-0" if role == "serve" else "worker-0") if len(words) > 3 else None
    (serve if role == "serve" else ask)(where, *map(int, words[:3]), mine)  # type: ignore[arg-type]
