"""torch.compile before prepare; the loop calls the compiled model, the file that is saved is that of the plain one."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.randn(1024, 8)
loader = DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), batch_size=32, shuffle=True)
plain = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
model = torch.compile(plain, backend="eager")
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for epoch in range(4):
    for inputs, target in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), target)
        loss.backward()
        optimizer.step()
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step}, loss {loss.item():.4f}, {type(model).__name__}")
if ev.chief and len(sys.argv) > 1:
    torch.save(plain.state_dict(), sys.argv[1])
