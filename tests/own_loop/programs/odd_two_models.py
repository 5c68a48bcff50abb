"""An encoder and a decoder with one optimizer; a third model, a slow copy of the encoder, is not prepared."""

import copy
import itertools

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.randn(1000, 3) @ torch.randn(3, 12)
loader = DataLoader(TensorDataset(x), batch_size=25, shuffle=True)
encoder, decoder = nn.Sequential(nn.Linear(12, 3), nn.BatchNorm1d(3)), nn.Linear(3, 12)
optimizer = torch.optim.AdamW(itertools.chain(encoder.parameters(), decoder.parameters()), lr=0.02)
encoder, decoder, optimizer, loader = ev.prepare(encoder, decoder, optimizer, loader)
slow = copy.deepcopy(encoder)

for epoch in range(4):
    for (inputs,) in loader:
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.mse_loss(decoder(encoder(inputs)), inputs)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(slow.parameters(), encoder.parameters(), strict=True):
                average.lerp_(parameter, 0.05)
    if ev.chief:
        print(f"epoch {epoch}: step {ev.step}, loss {loss.item():.4f}")
