"""What the logdirs beside this file were trained on, by evener 9e33542:

    evener train recipe.py:recipe --train-steps 6 --batch-size 10 --logdir alone
    evener train recipe.py:recipe --train-steps 6 --batch-size 10 --logdir cluster --ps 2 --workers 2 --mode sync

They stay as they are, so that logdirs of that day can be continued.
"""

import torch
from torch import nn

import evener


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def optimizer(made: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in made.parameters() if p.dim() > 1]
    others = [p for p in made.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.01
    )


def recipe() -> evener.Recipe:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 8, generator=generator)
    target = (inputs @ torch.randn(8, 3, generator=generator)).argmax(1)
    return evener.Recipe(
        model=model,
        data=lambda: ((inputs, target), (inputs, target)),
        optimizer=optimizer,
        lr_scheduler=lambda made, _: torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=20),
        ema_decay=0.9,
    )
