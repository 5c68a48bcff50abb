"""The least that a parameter server in a process of its own does: what is left of it where nothing can go wrong.

Gradients and parameters lie in shared memory, one byte says that they are there, and the update is one call of PyTorch.
No name, no number, no look whether a gradient is finite, no ledger, no checkpoint, no schedule, nobody who may leave.
`--mode async`, `async in_flight=2` or `sync`; `sync copies=1`, where each worker copies the new parameters itself, both
at once; `sync copies=0`, where they compute on the server's own. No parameter server written in Python can be faster.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from pathlib import Path

import torch
import work
from job import Job, told
from torch import Tensor, nn

from evener.cluster.environment import copying_variables
from evener.devices.process import prepare_process
from evener.state.tensors import overwrite


def places(job: Job) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Of each worker, where its gradient lies and where parameters come to it; and the server's own; float32 [N]."""
    size = job.nbytes // 4
    memory = torch.from_file(str(file_of(job)), shared=True, size=(2 * len(job.workers) + 1) * size)
    *parts, own = memory.split(size)
    return list(zip(parts[::2], parts[1::2], strict=True)), own


def file_of(job: Job) -> Path:
    """In memory, for as long as not all have opened it."""
    return Path("/dev/shm") / f"bare-{Path(job.meter).parent.name}"


def views(flat: Tensor, model: nn.Module) -> list[Tensor]:
    """Of the parameters of a model, in a flat memory."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    parts = flat.split(sizes)
    return [part.view(parameter.shape) for part, parameter in zip(parts, model.parameters(), strict=True)]


def serve(job: Job) -> None:
    shared, flat = places(job)
    torch.cat([parameter.detach().flatten() for parameter in work.model(job).parameters()], out=flat)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(f"{job.meter}.ps")
        door.listen()
        links = {int(link.recv(1)[0]): link for link, _ in (door.accept() for _ in job.workers)}
    file_of(job).unlink()
    for index, link in links.items():
        overwrite(shared[index][1], flat)
        link.send(b"x")
    if job.mode.startswith("sync"):
        in_step(links, shared, flat, job)
    else:
        one_by_one(links, shared, flat, job.learning_rate)


def one_by_one(links: dict[int, socket.socket], shared: list[tuple[Tensor, Tensor]], flat: Tensor, rate: float) -> None:
    waiting = select.epoll()
    of = {link.fileno(): index for index, link in links.items()}
    for descriptor in of:
        waiting.register(descriptor, select.EPOLLIN)
    while True:
        for descriptor, _ in waiting.poll():
            index = of[descriptor]
            if not links[index].recv(1):
                return
            flat.add_(shared[index][0], alpha=-rate)
            overwrite(shared[index][1], flat)
            links[index].send(b"x")


def in_step(links: dict[int, socket.socket], shared: list[tuple[Tensor, Tensor]], flat: Tensor, job: Job) -> None:
    mean, copies = torch.empty_like(flat), "copies" not in job.mode
    while all([link.recv(1) for link in links.values()]):
        torch.add(shared[0][0], shared[1][0], out=mean)
        flat.add_(mean, alpha=-job.learning_rate / 2)
        for index, link in links.items():
            if copies:
                overwrite(shared[index][1], flat)
            link.send(b"x")


def train(job: Job) -> None:
    shared, own = places(job)
    gradient, landing = shared[job.index]
    model, meter, link = work.model(job), job.slot(), connected(job)
    flies, copies = "in_flight=2" in job.mode, "copies=1" in job.mode
    flat = torch.empty_like(landing) if flies else own if "copies=0" in job.mode else landing
    link.recv(1)
    if flies:
        flat.copy_(landing)
    for parameter, view in zip(model.parameters(), views(flat, model), strict=True):
        parameter.data = view
    under_way, parts = False, views(gradient, model)
    for batch in work.batches(job):
        if under_way and select.select([link], [], [], 0)[0]:
            link.recv(1)
            overwrite(flat, landing)
            under_way = False
        loss = work.gradient(model, batch)
        if under_way:
            link.recv(1)
        for parameter, part in zip(model.parameters(), parts, strict=True):
            overwrite(part, parameter.grad)
        if under_way:
            overwrite(flat, landing)
        link.send(b"x")
        under_way = flies
        if not flies:
            link.recv(1)
        if copies:
            overwrite(flat, own)
        meter.count(loss)


def connected(job: Job) -> socket.socket:
    """A link to the ps, which knows from then on who this is. Raises OSError when it is not there within a minute."""
    link, deadline = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), time.monotonic() + 60
    while True:
        try:
            link.connect(f"{job.meter}.ps")
            link.send(bytes([job.index]))
            return link
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main() -> None:
    if more := copying_variables(os.environ):  # as tasks of evener have it: libc looks when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **more})
    job = told()
    work.start()
    prepare_process(1, serves=job.role == "ps")
    if job.role == "ps":
        serve(job)
    else:
        train(job)


if __name__ == "__main__":
    main()
