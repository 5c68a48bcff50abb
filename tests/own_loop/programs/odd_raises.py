"""An error in step 7, on whichever worker makes the file MARK first; nobody has one the second time.

usage: odd_raises.py MARK
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.randn(800, 8)
loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=20, shuffle=True)
model = nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for epoch in range(3):
    for i, (inputs, target) in enumerate(loader):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), target)
        loss.backward()
        if i == 7:
            try:
                Path(sys.argv[1]).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                raise ValueError(f"step {i} of epoch {epoch} went wrong")
        optimizer.step()
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step}, loss {loss.item():.4f}")
