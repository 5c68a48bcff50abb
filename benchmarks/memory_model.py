"""What `memory.py` trains: two linear layers of equal size; as a recipe, a plain loop and a prepared one.

python benchmarks/memory_model.py WIDTH STEPS --keep DIRECTORY     # plain PyTorch, which saves twice
evener train benchmarks/memory_model.py:recipe --set width=7000 --set optimizer=adam
evener launch benchmarks/memory_model.py WIDTH STEPS               # the same loop, prepared
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import evener

SAMPLES, BATCH = 512, 4
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "fused": partial(torch.optim.Adam, fused=True),
}


def model(width: int) -> nn.Module:
    """2 width^2 + 2 width parameters of 4 bytes."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def data(width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, width, generator=generator), torch.randint(0, 10, (SAMPLES,), generator=generator)


def recipe(width: int = 7000, optimizer: str = "sgd", ema: float = 0.0) -> evener.Recipe:
    return evener.Recipe(
        model=lambda: model(width),
        data=lambda: data(width),
        optimizer=lambda made: OPTIMIZERS[optimizer](made.parameters(), lr=0.001),
        loss=nn.functional.cross_entropy,
        metrics={},
        ema_decay=ema or None,
    )


def loop(width: int, steps: int, keep: Path | None, kind: str) -> None:
    """With `keep` plain PyTorch, which writes its checkpoints there; else prepared, where evener does."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = model(width)
    optimizer = OPTIMIZERS[kind](made.parameters(), lr=0.001)
    loader = DataLoader(TensorDataset(*data(width)), batch_size=BATCH, shuffle=True)
    if keep is None:
        made, optimizer, loader = evener.join().prepare(made, optimizer, loader)
    for done, (inputs, labels) in enumerate(loader, 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(made(inputs), labels).backward()
        optimizer.step()
        if keep is not None and done in (steps // 2, steps):
            torch.save(made.state_dict(), keep / f"{done}.pt")
        if done >= steps:
            break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("width", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--keep", type=Path, help="a directory: plain PyTorch saves there")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    options = parser.parse_args()
    loop(options.width, options.steps, options.keep, options.optimizer)
