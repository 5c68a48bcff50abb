"""The validation loader is prepared too, after a habit from Accelerate: it must stay whole."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.randn(1200, 8)
label = (x.sum(1) > 0).long()
train_loader = DataLoader(TensorDataset(x[:1000], label[:1000]), batch_size=20, shuffle=True)
val_loader = DataLoader(TensorDataset(x[1000:], label[1000:]), batch_size=50)
model = nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
model, optimizer, train_loader, val_loader = ev.prepare(model, optimizer, train_loader, val_loader)

for epoch in range(3):
    model.train()
    for inputs, target in train_loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    model.eval()
    correct = count = 0
    with torch.no_grad():
        for inputs, target in val_loader:  # on every worker
            correct += int((model(inputs).argmax(1) == target).sum())
            count += len(target)
    print(f"epoch {epoch}: step {ev.step}, {correct} of {count} right")
    assert count == 200, count
