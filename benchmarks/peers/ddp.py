"""DistributedDataParallel over Gloo: a replica in each process, gradients averaged in `backward`."""

from __future__ import annotations

import work
from job import told
from torch import distributed as dist, nn


def main() -> None:
    job = told()
    work.start()
    dist.init_process_group(
        "gloo", init_method=f"tcp://{job.workers[0]}", rank=job.index, world_size=len(job.workers)
    )  # fmt: skip
    model = nn.parallel.DistributedDataParallel(work.model(job))
    optimizer, meter = work.optimizer(job, model.parameters()), job.slot()
    for batch in work.batches(job):
        loss = work.gradient(model, batch)
        optimizer.step()
        meter.count(loss)


if __name__ == "__main__":
    main()
