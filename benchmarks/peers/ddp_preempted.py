"""DistributedDataParallel with a checkpoint every 100 steps, as `torchrun --max-restarts` has it started again.

    torchrun --max-restarts 100 --nproc-per-node 3 benchmarks/peers/ddp_preempted.py PLACE STEPS MILLISECONDS

The network, batch and sleep of benchmarks/preemptions.py. In PLACE each rank writes one byte for each step that it
begins, its pid, and rank 0 how far the run is.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

SAVE_EVERY = 100


def main() -> None:
    place, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = torch.randn(100, 784), torch.randint(0, 10, (100,))
    saved, first = place / "checkpoint.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        first = state["step"]
    (place / f"pid-{rank}").write_text(str(os.getpid()))
    begun = os.open(place / f"begun-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for step in range(first + 1, steps + 1):
        os.write(begun, b".")
        since = time.perf_counter()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        time.sleep(max(0.0, pause - (time.perf_counter() - since)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % SAVE_EVERY == 0:
            torch.save({"model": model.state_dict(), "step": step}, place / "new.pt")
            os.replace(place / "new.pt", saved)
        if rank == 0:
            (place / "step").write_text(str(step))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
