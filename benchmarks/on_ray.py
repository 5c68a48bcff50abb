"""Runs on a Ray cluster of three nodes of this machine, beside the local launcher, and beside Ray Train.

    python benchmarks/on_ray.py            # 10 minutes; Ray Train needs: pip install 'ray[train]'
    python benchmarks/on_ray.py --rounds 1 --steps 500

Steps a second: 1 ps and 2 workers over TCP with keys, async, MLP 784-100-10 at batch 100; both launchers in turns.
Command to first step: seconds from typing the command to the first update of a program with a loop of its own, with
Ray running; the same network in a `TorchTrainer` of two workers, in turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "system"), str(ROOT / "tests" / "on_ray")]

from ray_nodes import RayNodes  # noqa: E402 - they are tools of the tests
from running import EVENER, Run  # noqa: E402

#: Seconds for one run.
LONGEST = 300.0
MLP = """
import time

import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def rows():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5000, 784, generator=generator), torch.randint(0, 10, (5000,), generator=generator)


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows()), batch_size=100, shuffle=True)


def train(model, optimizer, loader, first):
    for number, (inputs, labels) in enumerate(loader):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if number == 0:
            with open(first, "a") as file:
                print(time.time(), file=file)
"""
RECIPE = """
import evener
import torch
from mlp import net, rows


def recipe():
    return evener.Recipe(
        model=net, data=lambda: (rows(), rows()), optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.05)
    )
"""
OWN = """
import sys

import evener
import torch
from mlp import loader, net, train

ev = evener.join()
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
train(*ev.prepare(model, optimizer, loader()), sys.argv[1])
"""
TRAINER = """
import sys

import ray.train.torch
import torch
from mlp import loader, net, train


def run(config):
    model = ray.train.torch.prepare_model(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    train(model, optimizer, ray.train.torch.prepare_data_loader(loader()), config["first"])


ray.init(runtime_env={"working_dir": "."})
ray.train.torch.TorchTrainer(
    run, train_loop_config={"first": sys.argv[1]}, scaling_config=ray.train.ScalingConfig(num_workers=2),
    run_config=ray.train.RunConfig(storage_path=sys.argv[2]),
).fit()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4000)
    given = parser.parse_args()
    nodes = RayNodes()
    try:
        for _ in range(2):  # beside the head
            nodes.add(CPU=2)
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            for name, text in (("mlp", MLP), ("recipe_of", RECIPE), ("own", OWN), ("trainer", TRAINER)):
                (place / f"{name}.py").write_text(text)
            speeds(place, nodes.address, given.rounds, given.steps)
            starts(place, nodes.address, given.rounds)
    finally:
        nodes.close()
    return 0


def speeds(place: Path, address: str, rounds: int, steps: int) -> None:
    """Print steps a second by both launchers, and the ratio of runs that are neighbours."""
    ratios = []
    for number in range(rounds):
        found = {}
        for launcher in ("local", "ray") if number % 2 else ("ray", "local"):
            words = ["train", "recipe_of.py:recipe", "--ps", 1, "--workers", 2, "--transport", "tcp", "--threads", 1]
            words += ["--train-steps", steps, "--logdir", f"{launcher}-{number}", "--launcher", launcher, "--json"]
            where = ["--ray-address", address] if launcher == "ray" else []
            with Run([*EVENER, *words, *where], place) as run:
                done = run.finish(LONGEST)
            assert done.code == 0, done.text
            found[launcher] = float(done.json["steps_per_second"])
        ratios.append(found["ray"] / found["local"])
        print(f"steps/s: Ray {found['ray']:.0f}, local {found['local']:.0f}: {ratios[-1]:.2f}", flush=True)
    print(f"steps/s on Ray / by the local launcher: median {statistics.median(ratios):.2f}")


def starts(place: Path, address: str, rounds: int) -> None:
    """Print seconds from the command to the first step."""
    own = [*EVENER, "launch", "--launcher", "ray", "--ray-address", address, "--ps", 1, "--workers", 2]
    commands = {"evener": (*own, "--threads", 1, "own.py")}
    if importlib.util.find_spec("pandas"):
        commands["TorchTrainer"] = (sys.executable, "trainer.py")
    else:
        print("without Ray Train, which is not installed: pip install 'ray[train]'")
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            first = place / f"{name}-{number}"
            # Else Ray puts this machine's outer address in the place of a loopback one.
            loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if name == "TorchTrainer" else {}
            began = time.time()
            rest = (first, place / "storage") if name == "TorchTrainer" else (first,)
            with Run([*command, *rest], place, RAY_ADDRESS=address, OMP_NUM_THREADS="1", **loopback) as run:
                done = run.finish(LONGEST)
            assert done.code == 0, done.text
            taken[name].append(float(first.read_text().split()[0]) - began)
            print(f"command to first step: {name} {taken[name][-1]:.1f} s, to its end {done.seconds:.1f} s", flush=True)
    for name, seconds in taken.items():
        print(f"command to first step, {name}: median {statistics.median(seconds):.1f} s")


if __name__ == "__main__":
    sys.exit(main())
