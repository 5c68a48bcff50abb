"""Texts of about equal length in one batch: a batch_sampler of one's own, batches of unequal size, another order each
epoch."""

import torch
from torch import nn
from torch.utils.data import DataLoader

import evener

torch.set_num_threads(1)


class Buckets:
    """Batches of at most 200 tokens."""

    def __init__(self, lengths):
        self.batches, batch = [], []
        for index in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[index] > 200:
                self.batches.append(batch)
                batch = []
            batch.append(index)
        self.batches.append(batch)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        yield from (self.batches[n] for n in torch.randperm(len(self.batches)).tolist())


torch.manual_seed(0)
ev = evener.join()
texts = [torch.randint(0, 20, (n,)) for n in torch.randint(3, 40, (400,)).tolist()]
texts = [(text, (text < 10).float().mean()) for text in texts]
pad = nn.utils.rnn.pad_sequence
loader = DataLoader(
    texts,
    batch_sampler=Buckets([len(text) for text, _ in texts]),
    collate_fn=lambda batch: (pad([text for text, _ in batch], True, 20), torch.stack([part for _, part in batch])),
)
model = nn.EmbeddingBag(21, 1, mode="mean", padding_idx=20)
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for epoch in range(4):
    for ids, part in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(ids).squeeze(1), part)
        loss.backward()
        optimizer.step()
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step} of {len(loader)} an epoch, loss {loss.item():.4f}")
