"""sys.exit(0) in the middle of an epoch, as soon as the loss is small: by whichever worker sees it first."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.randn(2000, 8)
loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=20, shuffle=True)
model = nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for _ in range(100):
    for inputs, target in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), target)
        loss.backward()
        optimizer.step()
        if loss.item() < 0.15:
            print(f"good enough at step {ev.step}: loss {loss.item():.4f}")
            sys.exit(0)
