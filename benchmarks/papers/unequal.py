"""Workers of unequal speed: in how many seconds does each mode reach the same loss?

    python benchmarks/papers/unequal.py --data-dir D             # MNIST, 784-100-10, step times 1,2,3,4 and 1,1,1,10
    python benchmarks/papers/unequal.py --data-dir D --seeds 1   # a few minutes

Real MNIST, real gradients, the real policies, a virtual clock (`virtual.py`); each mode at each learning rate of one
grid, the median over seeds, its best rate counts. Writes a picture beside the table with --picture FILE.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import torch
from picture import bars
from torch import nn
from virtual import Task, learn

from evener.data import mnist
from evener.modes import Async, Bounded, Mode, Quorum, Rennala, Ringmaster, Softsync, Sync
from evener.simulate.crew import constant

SPEEDS = {"1,2,3,4": [1.0, 2.0, 3.0, 4.0], "1,1,1,10": [1.0, 1.0, 1.0, 10.0]}
RATES = [0.1, 0.2, 0.4, 0.8, 1.6]
BATCH, TARGET = 100, 0.15
#: Test samples that are looked at 400 times a run.
JUDGED = 2000
#: Their n-th share of 400 samples (MODES 8), each step as long as the slowest's: 1.92 s, and 1.3 s.
SHARES = {"1,2,3,4": [192, 96, 64, 48], "1,1,1,10": [130, 129, 129, 12]}

MODES: dict[str, Mode] = {
    "sync (lockstep, as DDP)": Sync(),
    "sync, one backup": Sync(replicas_to_aggregate=3),
    "bounded 4": Bounded(),
    "async": Async(),
    "ringmaster 8": Ringmaster(),
    "rennala 4": Rennala(gradients_per_update=4),
    "rennala 16": Rennala(),
    "softsync 4": Softsync(),
    "quorum 3": Quorum(),
}


def task(directory: Path) -> Task:
    """MNIST, and the perceptron of the tutorials with 100 hidden units."""
    data = mnist.load(directory)
    parts = []
    for part, count in ((data.train, len(data.train)), (data.validation, JUDGED)):
        inputs, labels = part.batch(torch.arange(count))
        parts.append((inputs.reshape(len(inputs), -1), labels))
    return Task(lambda: nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)), *parts, BATCH)


def seconds_until(work: Task, name: str, speeds: str, lr: float, seed: int, horizon: float) -> float:
    """Virtual seconds to the target."""
    times = SPEEDS[speeds]
    if name == "batches by speed":
        share = SHARES[speeds]
        step = max(n * t for n, t in zip(share, times, strict=True)) / BATCH
        mode, pace, more = Sync(), constant([step] * 4), {"share": share}
    else:
        mode, pace, more = MODES[name], constant(times), {}
    curve = learn(
        work, mode, pace, 4, lr=lr, seed=seed, seconds=horizon, every=horizon / 400, enough=TARGET, **more
    )  # fmt: skip
    return curve.until(TARGET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--horizon", type=float, default=3000.0, help="virtual seconds")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = task(args.data_dir)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for speeds in SPEEDS:
        for name in [*MODES, "batches by speed"]:
            best = (math.inf, 0.0)
            for lr in RATES:
                # A rate that is worse than the best so far by the first seed alone is not tried with the others.
                first = seconds_until(work, name, speeds, lr, 0, min(args.horizon, 2 * best[0]))
                if first > 1.5 * best[0]:
                    continue
                others = [seconds_until(work, name, speeds, lr, seed, args.horizon) for seed in range(1, args.seeds)]
                best = min(best, (statistics.median([first, *others]), lr))
            found.setdefault(speeds, {})[name] = best
            print(f"{speeds:9s}  {name:26s} {best[0]:7.0f} s at lr {best[1]:g}", flush=True)
        lockstep = found[speeds]["sync (lockstep, as DDP)"][0]
        for name, (seconds, _) in found[speeds].items():
            print(f"{speeds:9s}  {name:26s} {lockstep / seconds:5.2f} x lockstep", flush=True)
    if args.picture:
        args.picture.write_text(bars(
            f"Virtual seconds to a test loss of {TARGET} (MNIST, 784-100-10), best learning rate of a grid",
            {speeds: {name: value[0] for name, value in of.items()} for speeds, of in found.items()},
        ))  # fmt: skip
    if args.json:
        json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
