"""Steps per second of evener against the same training without any exchange, as ratios within one run.

    python benchmarks/steps.py [--hidden 500] [--steps 1500] [--repeats 5] [--only async,sync]

The limit is two free processes on the same two cores: each trains its own copy of the network, nothing is exchanged.
`plain` is a plain PyTorch loop (forward, backward, SGD, L2; no moving average, no log, no checkpoint), `single` is
`evener train mnist` in one process with all of these. Every way is measured once per repeat, in turn; medians are
compared. Batch 100, one PyTorch thread a task, the 784-H-10 network on the digits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable


def plain_loop(hidden: int, steps: int) -> None:
    """One free process: prints its steps/s. Waits for a line on stdin, so that both begin together."""
    import torch

    from evener.data.batches import Batches
    from evener.data.dataset import as_data
    from evener.devices import prepare_process
    from evener.recipes.recipe import resolve

    prepare_process(1)
    recipe = resolve("mnist", {"hidden": hidden})
    model = recipe.model()
    optimizer = recipe.optimizer(model)
    batches = Batches(as_data(recipe.data()).train, batch_size=100, seed=0)
    assert recipe.penalty is not None

    def step(lease: int) -> float:
        inputs, target = batches.batch(lease)
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(inputs), target) + recipe.penalty(model)  # type: ignore[misc]
        loss.backward()
        optimizer.step()
        return loss.item()

    for lease in range(50):
        step(lease)
    print("ready", flush=True)
    sys.stdin.readline()
    since = time.perf_counter()
    for lease in range(steps):
        step(lease)
    print(steps / (time.perf_counter() - since), flush=True)


def plain(hidden: int, steps: int) -> float:
    """Summed steps/s of two free plain loops."""
    command = [sys.executable, __file__, "--plain-loop", "--hidden", str(hidden), "--steps", str(steps // 2)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for child in children:
        assert child.stdout and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    return sum(float(child.communicate()[0]) for child in children)


def single(hidden: int, steps: int) -> float:
    """Summed steps/s of two free single-process runs of evener."""
    children = [_start(hidden, steps // 2, []) for _ in range(2)]
    return sum(_rate(child) for child in children)


def cluster(*options: str) -> Callable[[int, int], float]:
    """Steps/s (gradients/s in sync) of 1 ps + 2 workers."""

    def measure(hidden: int, steps: int) -> float:
        per_update = 2 if "sync" in options else 1
        return _rate(_start(hidden, steps // per_update, ["--ps", "1", "--workers", "2", *options])) * per_update

    return measure


def _start(hidden: int, steps: int, options: list[str]) -> subprocess.Popen[str]:
    logdir = tempfile.mkdtemp(prefix="evener-bench-")
    command = ["train", "mnist", "--hidden", str(hidden), "--train-steps", str(steps), "--logdir", logdir, "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "evener.cli.main", *command, "--quiet", *options], stdout=subprocess.PIPE, text=True
    )


def _rate(child: subprocess.Popen[str]) -> float:
    output = child.communicate()[0]
    return float(json.loads(output.splitlines()[-1])["steps_per_second"])


WAYS: dict[str, Callable[[int, int], float]] = {
    "plain": plain,
    "single": single,
    "async": cluster(),
    "bounded": cluster("--mode", "bounded"),
    "sync": cluster("--mode", "sync"),
    "async-tcp": cluster("--transport", "tcp"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500, help="gradients per measurement, over both workers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--plain-loop", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain_loop:
        plain_loop(args.hidden, args.steps)
        return
    names = args.only.split(",")
    rates: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(args.repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            rates[name].append(WAYS[name](args.hidden, args.steps))
    print(f"gradients/s, 784-{args.hidden}-10, batch 100, {os.cpu_count()} cores, median of {args.repeats}")
    for name in names:
        middle = statistics.median(rates[name])
        against = [f"{middle / statistics.median(rates[base]):.2f} of {base}" for base in ("plain", "single")
                   if base in rates and base != name]  # fmt: skip
        print(f"  {name:14} {middle:7.0f}  ({min(rates[name]):.0f}-{max(rates[name]):.0f})  {', '.join(against)}")


if __name__ == "__main__":
    main()
