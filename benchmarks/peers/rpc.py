"""A parameter server by torch.distributed.rpc, as PyTorch's tutorials have it: asynchronous, one lock, no batching.

Trainers send their gradients, the server takes a step of its optimizer and answers with all parameters.
"""

from __future__ import annotations

import threading
import time

import torch
import work
from job import Job, told
from torch import Tensor, nn
from torch.distributed import rpc


class Server:
    """Made by the ps, reached by its name."""

    def __init__(self, job: Job) -> None:
        self.parameters = list(work.model(job).parameters())
        self.optimizer = work.optimizer(job, iter(self.parameters))
        self.lock = threading.Lock()

    def update(self, gradients: list[Tensor]) -> list[Tensor]:
        with self.lock:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            return [parameter.detach().clone() for parameter in self.parameters]


SERVER: list[Server] = []


def update(gradients: list[Tensor]) -> list[Tensor]:
    """Called from afar."""
    return SERVER[0].update(gradients)


def train(job: Job, model: nn.Module) -> None:
    meter, parameters = job.slot(), list(model.parameters())
    for batch in work.batches(job):
        loss = work.gradient(model, batch)
        answer = rpc.rpc_sync("ps", update, args=([parameter.grad for parameter in parameters],))
        with torch.no_grad():
            for parameter, value in zip(parameters, answer, strict=True):
                parameter.copy_(value)
        meter.count(loss)


def main() -> None:
    job = told()
    work.start()
    serves = job.role == "ps"
    if serves:
        SERVER.append(Server(job))
    rpc.init_rpc(
        "ps" if serves else f"worker{job.index}", rank=0 if serves else 1 + job.index, world_size=1 + len(job.workers),
        rpc_backend_options=rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://{job.ps[0]}", num_worker_threads=4),
    )  # fmt: skip
    if serves:
        time.sleep(600)  # the driver ends it before
    else:
        train(job, work.model(job))


if __name__ == "__main__":
    main()
