"""Gradual unfreezing: add_param_group in the second epoch. To be refused by name; before prepare it would be fine."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.randn(800, 8)
loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=20, shuffle=True)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
model[0].requires_grad_(False)
optimizer = torch.optim.SGD(model[2].parameters(), lr=0.2)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for epoch in range(3):
    if epoch == 1:
        model[0].requires_grad_(True)
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.02})
    for inputs, target in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), target)
        loss.backward()
        optimizer.step()
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step}, loss {loss.item():.4f}")
