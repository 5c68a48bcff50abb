"""DistributedDataParallel over Gloo, each rank asleep after each batch as `--slow` would have it: samples a second.

    torchrun --nproc-per-node 4 benchmarks/peers/ddp_unequal.py 20,40,60,80 150

The same network, batch and sleeps as benchmarks/unequal.py: 784-8-10 on random images, 100 a rank; times in ms.
"""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.distributed as dist
from torch import nn


def main() -> None:
    times, steps = [float(word) / 1000 for word in sys.argv[1].split(",")], int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = torch.randn(100, 784), torch.randint(0, 10, (100,))
    began = 0.0
    for step in range(steps + 10):
        if step == 10:
            dist.barrier()
            began = time.perf_counter()
        since = time.perf_counter()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        time.sleep(max(0.0, times[rank] - (time.perf_counter() - since)))  # before the gradients are averaged
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dist.barrier()
    if rank == 0:
        print(f"{100 * len(times) * steps / (time.perf_counter() - began):.1f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
