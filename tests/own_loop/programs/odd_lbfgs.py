"""LBFGS calls its closure many times a step: fine alone, to be refused by name with parameter servers."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.linspace(-3, 3, 400).unsqueeze(1)
loader = DataLoader(TensorDataset(x, x.sin()), batch_size=200, shuffle=True)
model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=10)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for epoch in range(5):
    for inputs, target in loader:

        def closure(inputs=inputs, target=target):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), target)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step}, loss {loss.item():.6f}")
