"""A stream without a length, which is read by worker processes too: an IterableDataset, 40 batches an epoch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import evener

torch.set_num_threads(1)


class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for number in range(first, 1280, step):
            x = torch.randn(8, generator=torch.Generator().manual_seed(number))
            yield x, (x.sum() > 0).float()


ev = evener.join()
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
loader = DataLoader(Stream(), batch_size=32, num_workers=2)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for epoch in range(3):
    for x, label in loader:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), label)
        loss.backward()
        optimizer.step()
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step}, loss {loss.item():.4f}")
