"""On a machine with a GPU: the tests that need one, then the CIFAR-10 step beside the plain PyTorch loop.

    make bench-gpu          (PYTHON=python3 of an environment with torch for CUDA and evener's dependencies)

The step is that of the classic network at batch 128, on random images of CIFAR-10's shape that come from the CPU
in both cases: `plain` is forward, backward, optimizer; `evener` a session in one process with its hooks, schedule,
moving averages and ledger. Both run in turn in one process; medians over the repeats. Aim: at most 5 % slower.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from evener.data.dataset import Data, Tensors
from evener.devices import prepare_process
from evener.recipes.cifar10 import cifar10
from evener.recipes.recipe import Recipe
from evener.settings import Settings
from evener.task.build import build
from evener.task.owner import session_of

BATCH, SAMPLES = 128, 2560


def recipe() -> Recipe:
    """CIFAR-10's classic network over random images [24, 24]."""
    torch.manual_seed(0)
    images, labels = torch.randn(SAMPLES, 3, 24, 24), torch.randint(10, (SAMPLES,))
    return replace(cifar10(data_dir="nowhere"), data=lambda: Data(Tensors(images, labels)))


def plain(device: torch.device) -> Callable[[int], None]:
    made = recipe()
    model = made.model().to(device).train()
    optimizer = made.optimizer(model)
    data = made.data().train
    order = torch.randperm(SAMPLES)

    def steps(count: int) -> None:
        for number in range(count):
            at = number * BATCH % SAMPLES
            inputs, target = (tensor.to(device) for tensor in data.batch(order[at : at + BATCH]))
            optimizer.zero_grad(set_to_none=True)
            loss = made.loss(model(inputs), target)
            if made.penalty is not None:
                loss = loss + made.penalty(model)
            loss.backward()
            optimizer.step()

    return steps


def session(device: torch.device, logdir: str) -> Callable[[int], None]:
    gpus = {"num_gpus": 1} if device.type == "cuda" else {}
    settings = Settings(
        recipe="cifar10", batch_size=BATCH, train_steps=10**9, logdir=logdir, save_checkpoint_secs=None, **gpus
    )
    running = session_of(build(settings, recipe()), settings, lambda report: None)
    running.turn = running.exchange.start()

    def steps(count: int) -> None:
        for _ in range(count):
            running.step()

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here: torch.cuda.is_available() is False. --device cpu tries the script itself.")
    prepare_process(torch.get_num_threads())
    seconds: dict[str, list[float]] = {"plain": [], "evener": []}
    with tempfile.TemporaryDirectory() as logdir:
        ways = {"plain": plain(device), "evener": session(device, logdir)}
        for repeat in range(options.repeats + 1):  # the first warms up
            for name, steps in ways.items():
                since = time.perf_counter()
                steps(options.steps)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat:
                    seconds[name].append((time.perf_counter() - since) / options.steps)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"CIFAR-10 classic, batch {BATCH}, {where}, torch {torch.__version__}")
    for name, value in median.items():
        print(f"  {name:7} {value * 1e3:8.3f} ms a step, {BATCH / value:10.0f} examples/s")
    print(f"  overhead of evener: {median['evener'] / median['plain'] - 1:+.1%} (aim: at most +5 %)")


if __name__ == "__main__":
    main()
