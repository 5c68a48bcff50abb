"""What the network itself moves: a payload to the server and one back, over and over, with nothing but sockets.

python plain_sockets.py serve ADDRESS PORT NBYTES CLIENTS       one thread for each client, until all have left
python plain_sockets.py ask ADDRESS PORT NBYTES SECONDS         says "go", then the rounds a second
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time


def exactly(connection: socket.socket, into: memoryview) -> bool:
    """Fill the buffer; False when the other end has closed."""
    while len(into):
        if not (count := connection.recv_into(into)):
            return False
        into = into[count:]
    return True


def answer(connection: socket.socket, nbytes: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inbox, outbox = memoryview(bytearray(nbytes)), b"x" * nbytes  # zeros would be one page of the kernel's
    while exactly(connection, inbox):
        connection.sendall(outbox)


def serve(address: str, port: int, nbytes: int, clients: int) -> None:
    with socket.create_server((address, port)) as door:
        threads = [threading.Thread(target=answer, args=(door.accept()[0], nbytes)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def ask(address: str, port: int, nbytes: int, seconds: float) -> None:
    with connected(address, port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inbox, outbox, rounds = memoryview(bytearray(nbytes)), b"x" * nbytes, 0
        print("go", flush=True)
        since = time.monotonic()
        while time.monotonic() - since < seconds:
            connection.sendall(outbox)
            assert exactly(connection, inbox)
            rounds += 1
        print(json.dumps({"rate": rounds / (time.monotonic() - since), "count": rounds}), flush=True)


def connected(address: str, port: int) -> socket.socket:
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((address, port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


if __name__ == "__main__":
    role, where, *numbers = sys.argv[1:]
    (serve if role == "serve" else ask)(where, *map(int, numbers))  # type: ignore[arg-type]
