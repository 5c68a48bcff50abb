"""A parameter server as a Ray actor, as Ray's documentation has it: asynchronous, gradients and weights are objects."""

from __future__ import annotations

import os
import tempfile

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", OMP_NUM_THREADS="1")

import numpy as np
import ray
import torch
import work
from job import Job, told


@ray.remote(num_cpus=0)
class ParameterServer:
    def __init__(self, job: Job) -> None:
        work.start()
        self.model = work.model(job)
        self.optimizer = work.optimizer(job, self.model.parameters())

    def apply(self, gradients: list[np.ndarray]) -> list[np.ndarray]:
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        self.optimizer.step()
        return self.weights()

    def weights(self) -> list[np.ndarray]:
        return [parameter.detach().numpy() for parameter in self.model.parameters()]


@ray.remote(num_cpus=0)
class Worker:
    def __init__(self, job: Job) -> None:
        work.start()
        self.model, self.batches, self.meter = work.model(job), work.batches(job), job.slot()

    def compute(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            for parameter, weight in zip(self.model.parameters(), weights, strict=True):
                parameter.copy_(torch.tensor(weight))
        loss = work.gradient(self.model, next(self.batches))
        self.meter.count(loss)
        return [parameter.grad.numpy() for parameter in self.model.parameters()]


def main() -> None:
    job = told()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as place:  # its sockets' names may have 108 bytes
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=place, log_to_driver=False)
        server = ParameterServer.remote(job)
        workers = [
            Worker.remote(Job(**{**vars(job), "role": "worker", "index": index})) for index in range(len(job.workers))
        ]
        weights = server.weights.remote()
        computing = {worker.compute.remote(weights): worker for worker in workers}
        while True:
            ready = ray.wait(list(computing))[0][0]
            worker = computing.pop(ready)
            computing[worker.compute.remote(server.apply.remote(ready))] = worker


if __name__ == "__main__":
    main()
