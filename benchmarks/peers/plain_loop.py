"""A plain PyTorch loop, which shares nothing. Several of them at once are the limit of what a machine can do.

With `--mode lockstep` two of them wait for each other after each gradient, by one byte each way, and exchange nothing.
"""

from __future__ import annotations

import socket
import time

import work
from job import Job, told


def main() -> None:
    job = told()
    work.start()
    model = work.model(job)
    optimizer, meter = work.optimizer(job, model.parameters()), job.slot()
    other = neighbour(job) if job.mode == "lockstep" else None
    for batch in work.batches(job):
        loss = work.gradient(model, batch)
        if other:
            other.sendall(b"x")
            assert other.recv(1), "the other one has ended"
        optimizer.step()
        meter.count(loss)


def neighbour(job: Job) -> socket.socket:
    """A link to the other of two. Raises OSError when it does not come within a minute."""
    path, deadline = f"{job.meter}.socket", time.monotonic() + 60
    link = socket.socket(socket.AF_UNIX)
    if job.index == 0:
        link.bind(path)
        link.listen()
        link.settimeout(60)
        found = link.accept()[0]
        found.settimeout(None)
        return found
    while True:
        try:
            link.connect(path)
            return link
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
