"""optimizer.step(closure) with an optimizer that calls it once, as the documentation of torch.optim shows it."""

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
    for inputs, target in loader:

        def closure(inputs=inputs, target=target):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), target)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step}, loss {loss.item():.4f}")
