"""What the network itself moves: a payload to the server and one back, over and over, with nothing but sockets."""

from __future__ import annotations

import math
import socket
import threading
import time

from job import Job, told


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


def place_of(host: str) -> tuple[str, int]:
    address, _, port = host.rpartition(":")
    return address, int(port)


def serve(job: Job) -> None:
    """One thread for each client, until all have left."""
    with socket.create_server(place_of(job.ps[0])) as door:
        threads = [threading.Thread(target=answer, args=(door.accept()[0], job.nbytes)) for _ in job.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def ask(job: Job) -> None:
    meter = job.slot()
    with connected(place_of(job.ps[0])) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inbox, outbox = memoryview(bytearray(job.nbytes)), b"x" * job.nbytes
        while True:
            connection.sendall(outbox)
            assert exactly(connection, inbox)
            meter.count(math.nan)


def connected(place: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(place)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


if __name__ == "__main__":
    mine = told()
    (serve if mine.role == "ps" else ask)(mine)
