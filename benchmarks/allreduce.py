"""Updates per second of two towers against plain DistributedDataParallel, as ratios within one run.

    python benchmarks/allreduce.py [--hidden 500,100] [--steps 600] [--repeats 5]

Both train 784-H-10 on the digits at batch 100 a process, with SGD and L2 loss, on two processes of one PyTorch thread.
`ddp` is a plain loop over Gloo: forward, backward (in which DDP averages), step. `towers` is `AllReduce` in a bare
session, in shared memory (`--no-memory`: over Gloo), `session` all of a run with its hooks and moving averages. (All
but `ddp` check that gradients are finite, step the schedule and write the ledger.) One pair of processes does all
three, in turn, so that all see the same machine; medians over the repeats. Where others use the cores, read the CPU
time of an update instead of its rate.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from evener.data.batches import Batches
from evener.data.dataset import as_data
from evener.devices import prepare_process
from evener.recipes.recipe import resolve
from evener.settings import Settings
from evener.state.tensors import CPU
from evener.task.build import build
from evener.task.owner import Tower, session_of
from evener.worker.allreduce.meeting import store_at
from evener.worker.allreduce.process_group import ProcessGroup

FOREVER = 10**9


class Once:
    """One group for all sessions of this process."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group, self.rank, self.size = group, group.rank, group.size
        self.sum, self.gather, self.share = group.sum, group.gather, group.share

    def close(self, *, failed: bool = False) -> None:
        pass


def ddp(hidden: int, rank: int) -> Callable[[int], None]:
    torch.manual_seed(0)
    recipe = resolve("mnist", {"hidden": hidden})
    assert recipe.penalty is not None
    plain = recipe.model()
    model = torch.nn.parallel.DistributedDataParallel(plain)
    optimizer = recipe.optimizer(plain)
    batches = Batches(as_data(recipe.data()).train, batch_size=100, seed=0)
    taken = iter(range(rank, FOREVER, 2))

    def train(steps: int) -> None:
        for _ in range(steps):
            inputs, target = batches.batch(next(taken))
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(inputs), target) + recipe.penalty(plain)  # type: ignore[misc]
            loss.backward()
            optimizer.step()
            loss.item()

    return train


def session(hidden: int, rank: int, group: Any, directory: str) -> Any:
    settings = Settings(
        recipe="mnist", recipe_options={"hidden": hidden}, towers=2, train_steps=FOREVER, logdir=directory,
        save_checkpoint_secs=None,
    )  # fmt: skip
    made = session_of(
        build(settings),
        settings,
        lambda report: None,
        Tower(rank=rank, local_rank=rank, one_machine=True, meet=group),
    )
    made.turn = made.exchange.start()
    for hook in made._hooks:
        hook.after_create(made)
    return made


def ways(hidden: int, rank: int, group: Any, directory: str) -> Iterator[tuple[str, Callable[[int], None]]]:
    yield "ddp", ddp(hidden, rank)
    bare = session(hidden, rank, group, f"{directory}/{hidden}-bare")
    bare._hooks.clear()
    bare.exchange._inner._state._averages = None
    yield "towers", lambda steps: [bare.step() for _ in range(steps)] and None
    whole = session(hidden, rank, group, f"{directory}/{hidden}-whole")
    yield "session", lambda steps: [whole.step() for _ in range(steps)] and None


def tower(args: argparse.Namespace) -> None:
    rank, directory = args.rank, args.directory
    prepare_process(1)
    group = Once(ProcessGroup(
        store_at(args.address, 120.0), rank=rank, size=2, device=CPU, shared=False,
        one_machine=args.memory, start=120.0, patience=120.0, report=lambda report: None, clock=time.monotonic,
        lost=lambda: "",
    ))  # fmt: skip
    for hidden in map(int, args.hidden.split(",")):
        trains = dict(ways(hidden, rank, lambda device: group, directory))
        rates: dict[str, list[float]] = {name: [] for name in trains}
        work: dict[str, list[float]] = {name: [] for name in trains}
        for repeat in range(args.repeats + 1):  # the first warms up
            for name, train in trains.items():
                group.gather("ready")
                began, worked = time.perf_counter(), time.process_time()
                train(args.steps if repeat else 50)
                if repeat:
                    rates[name].append(args.steps / (time.perf_counter() - began))
                    work[name].append((time.process_time() - worked) / args.steps)
        if rank == 0:
            tell(hidden, rates, work)
        del trains  # DDP's own threads end before the group does
    group.group.close()


def tell(hidden: int, rates: dict[str, list[float]], work: dict[str, list[float]]) -> None:
    for name, found in rates.items():
        ratio = statistics.median(one / plain for one, plain in zip(found, rates["ddp"], strict=True))
        spread = f"{min(found):.0f}-{max(found):.0f}"
        cpu = statistics.median(work[name])
        share = cpu / statistics.median(work["ddp"])
        print(
            f"H={hidden:4} {name:8} {statistics.median(found):6.0f} updates/s ({spread}), {ratio:.2f} of ddp; "
            f"{1000 * cpu:.2f} ms CPU a process, {share:.2f} of ddp",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", default="500,100")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="--no-memory: by Gloo")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--address")
    parser.add_argument("--directory")
    args = parser.parse_args()
    if args.rank is not None:
        tower(args)
        return
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = torch.distributed.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    with tempfile.TemporaryDirectory() as directory:
        for hidden in args.hidden.split(","):
            for name in ("bare", "whole"):
                (Path(directory) / f"{hidden}-{name}" / "logs").mkdir(parents=True)
        words = [sys.executable, __file__, *sys.argv[1:], "--address", f"127.0.0.1:{port}", "--directory", directory]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        towers = [subprocess.Popen([*words, "--rank", str(rank)], env=environment) for rank in range(2)]
        codes = [process.wait() for process in towers]
    del store
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
