"""Five batches an epoch, then break: a quick look, as with --limit-batches of many scripts."""

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

for epoch in range(6):
    count = 0
    for i, (inputs, target) in enumerate(loader):
        if i == 5:
            break
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), target)
        loss.backward()
        optimizer.step()
        count += 1
    print(f"epoch {epoch}: {count} batches here")  # on every worker
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step}, loss {loss.item():.4f}")
