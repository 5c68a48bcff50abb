"""Zhang et al. 2015 (arXiv:1511.05950): 30 learners, every gradient an update, and steps divided by their staleness.

    python benchmarks/papers/zhang2015.py --data-dir D

A small convolutional net on a fifth of CIFAR-10 (10,000 images), 30 learners of equal speed (5 % jitter) that take 16
images each, on a virtual clock. `sync` is their hardsync: 480 images an update, at its best rate of a grid. n-softsync
with n = 30 is async: at that rate it fails; with each step divided by its staleness (--staleness-lr inverse) it reaches
what sync reaches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from random import Random

import torch
from picture import curves
from torch import nn
from virtual import Curve, Task, learn

from evener.data import cifar10
from evener.modes import Softsync, Sync
from evener.simulate.crew import Pace

LEARNERS, BATCH, RATES = 30, 16, [0.1, 0.2, 0.4]


def net() -> nn.Module:
    """Two convolutions and two layers: 82,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def task(directory: Path, judged: int) -> Task:
    """Images less the mean of each channel, by their deviation."""
    train, test = cifar10.read(directory)
    parts = []
    for (images, labels), count in ((train, len(train[0])), (test, judged)):
        parts.append(((images[:count].float() / 255 - 0.47) / 0.25, labels[:count].long()))
    return Task(net, *parts, BATCH)


def jitter(seed: int) -> Pace:
    chance = Random(seed)
    return lambda _worker, _time: chance.gauss(1.0, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = task(args.data_dir, 1000)
    seconds = args.epochs * len(work.train[0]) / BATCH / LEARNERS

    def run(mode: Softsync | Sync, lr: float, seed: int, **more: object) -> Curve:
        return learn(work, mode, jitter(seed), LEARNERS, lr=lr, seed=seed, seconds=seconds, every=seconds / 40, **more)

    tried = {lr: run(Sync(), lr, 0) for lr in RATES}
    best = min(tried, key=lambda lr: min(tried[lr].errors, default=1.0))
    print(f"sync, best rate {best:g}: error {min(tried[best].errors):.3f}", flush=True)
    ways = {
        "sync": lambda seed: run(Sync(), best, seed),
        "30-softsync, fixed rate": lambda seed: run(Softsync(gradients_per_update=1), best, seed),
        "30-softsync, rate / staleness": lambda seed: run(
            Softsync(gradients_per_update=1), best, seed, scale=lambda delay: 1 / max(1, delay)
        ),
    }
    found, drawn = {}, {}
    for name, way in ways.items():
        lines = [way(seed) for seed in range(args.seeds)]
        errors = [line.errors[-1] if line.errors and line.losses[-1] < 50 else 0.9 for line in lines]
        found[name], drawn[name] = errors, (lines[0].seconds, lines[0].errors)
        print(
            f"{name:32s} error at the end: {statistics.median(errors):.3f}  {[round(e, 3) for e in errors]}", flush=True
        )
    if args.picture:
        title = f"CIFAR-10 (10,000 images), {LEARNERS} learners, rate {best:g}: test error"
        args.picture.write_text(curves(title, drawn, across="virtual seconds", up="error"))
    if args.json:
        json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
