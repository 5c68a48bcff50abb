"""One sample of a rare class in twenty, drawn as often as the others by a WeightedRandomSampler (with replacement)."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

label = (torch.arange(1000) % 20 == 0).long()
x = torch.randn(1000, 8) + 2 * label.unsqueeze(1)
weights = torch.tensor([1 / 950, 1 / 50])[label]
sampler = WeightedRandomSampler(weights, num_samples=600, replacement=True)
loader = DataLoader(TensorDataset(x, label), batch_size=20, sampler=sampler)

model = nn.Linear(8, 2)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

rare = seen = 0
for epoch in range(4):
    for inputs, target in loader:
        rare, seen = rare + int(target.sum()), seen + len(target)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    if ev.chief:
        with torch.no_grad():
            recall = (model(x).argmax(1) == 1)[label == 1].float().mean().item()
        print(f"epoch {epoch}: step {ev.step}, {rare / seen:.2f} of the samples seen were rare, recall {recall:.2f}")
