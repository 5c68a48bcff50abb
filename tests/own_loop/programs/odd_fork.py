"""After each epoch a child is forked that plots, say, and ends by sys.exit: not the run's end, nor a message of it."""

import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.randn(200, 8)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=20)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for _ in range(2):
    for inputs, target in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
    child = os.fork()
    if child == 0:
        sys.exit(3)
    print(f"the child has ended with {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
