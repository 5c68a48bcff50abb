"""What a program's own loop costs under evener: steps a second of plain PyTorch and of the same loop, prepared.

    python benchmarks/own_loop.py            # alone, three models; and a loader whose samples take 2 ms each
    python benchmarks/own_loop.py --json

Both loops run in turns in one process, a block of steps each; the figure is the median ratio of neighbouring blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def mlp(hidden: int) -> tuple[Callable[[], nn.Module], torch.Tensor, torch.Tensor]:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    return make, torch.randn(20_000, 784), torch.randint(0, 10, (20_000,))


class Transformer(nn.Module):
    """Four layers of width 128 over 32 tokens: about 0.9 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


MODELS: dict[str, Callable[[], tuple[Callable[[], nn.Module], torch.Tensor, torch.Tensor]]] = {
    "mlp 784-500-10": lambda: mlp(500),
    "mlp 784-100-10": lambda: mlp(100),
    "transformer": lambda: (Transformer, torch.randint(0, 1000, (2_000, 32)), torch.randint(0, 10, (2_000,))),
}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, count: int) -> float:
    """Seconds of so many steps."""
    since, done = time.perf_counter(), 0
    while done < count:
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            done += 1
            if done == count:
                break
    return time.perf_counter() - since


def alone(name: str, logdir: str) -> dict[str, float]:
    import evener

    torch.set_num_threads(1)
    make, inputs, labels = MODELS[name]()
    size = 100 if name.startswith("mlp") else 32

    def parts() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
        model = make()
        data = TensorDataset(inputs, labels)
        return model, torch.optim.SGD(model.parameters(), lr=0.01), DataLoader(data, size, shuffle=True)

    plain, own = parts(), evener.join(**({"logdir": logdir} if logdir else {})).prepare(*parts())
    block = 10 if name == "transformer" else 100
    steps(*plain, block), steps(*own, block)
    ratios, rates = [], []
    for _ in range(15):
        first, second = steps(*plain, block), steps(*own, block)
        ratios.append(first / second)
        rates.append(block / second)
    return {"of plain": statistics.median(ratios), "steps/s": statistics.median(rates)}


LOADED = """
import sys, time, torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
torch.set_num_threads(1)
class Slow(Dataset):
    def __len__(self): return 3200
    def __getitem__(self, i):
        time.sleep(0.002)
        return torch.randn(20), i % 5
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(Slow(), 16, shuffle=True, num_workers=int(sys.argv[2]), persistent_workers=True)
if sys.argv[1] == "own":
    import evener
    ev = evener.join()
    model, optimizer, loader = ev.prepare(model, optimizer, loader)
for epoch in range(3):
    since, count = time.perf_counter(), 0
    for inputs, labels in loader:
        optimizer.zero_grad(); F.cross_entropy(model(inputs), labels).backward(); optimizer.step()
        count += 1
    if epoch: print("RATE", count / (time.perf_counter() - since), flush=True)
"""


def loaded(processes: int = 8) -> dict[str, float]:
    """With 2 ms a sample and 8 loader processes: plain, and as the one worker of a ps task."""
    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / "loaded.py"
        program.write_text(LOADED)
        launch = [sys.executable, "-m", "evener", "launch", "--logdir", f"{place}/log", "--ps", "1"]
        ratios = []
        for _ in range(3):
            one = _rate([sys.executable, str(program), "plain", str(processes)])
            two = _rate([*launch, str(program), "own", str(processes)])
            ratios.append(two / one)
            subprocess.run(["rm", "-rf", f"{place}/log"], check=True)
        return {"of plain": statistics.median(ratios), "steps/s": two}


def _rate(command: list[str]) -> float:
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    return statistics.median(float(line.rpartition(" ")[2]) for line in said.splitlines() if "RATE" in line)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    arguments.add_argument("--logdir", default="", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.one:
        print(json.dumps(alone(args.one, args.logdir)))
        return
    figures = {}
    for name in MODELS:  # a process joins once
        for kept in (False, True):
            with tempfile.TemporaryDirectory() as place:
                logdir = ["--logdir", f"{place}/log"] if kept else []
                command = [sys.executable, __file__, "--one", name, *logdir]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            figures[f"{name}{', with a logdir' if kept else ', alone'}"] = json.loads(said.splitlines()[-1])
    figures["2 ms a sample, 8 loader processes, 1 ps + 1 worker"] = loaded()
    if args.json:
        print(json.dumps(figures))
        return
    for name, values in figures.items():
        print(f"{name:52} {values['of plain']:.3f} of plain   {values['steps/s']:8.1f} steps/s")


if __name__ == "__main__":
    main()
