"""Ends by os._exit after its first epoch, as some programs do that hang otherwise."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
ev = evener.join()

x = torch.ones(40, 8)
loader = DataLoader(TensorDataset(x, x), batch_size=20)
model = nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for _ in range(2):
    for inputs, target in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
    os._exit(0)
