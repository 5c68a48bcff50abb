import argparse

import torch
from digits import accuracy, digits, net
from torch import nn
from torch.utils.data import DataLoader

import evener

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

ev = evener.join()
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
loader = DataLoader(digits(), batch_size=50, shuffle=True)
loss_fn = nn.CrossEntropyLoss()
model, optimizer, loader = ev.prepare(model, optimizer, loader)

for epoch in range(args.epochs):
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), labels)
        loss.backward()
        optimizer.step()
    if ev.chief:
        print(f"epoch {epoch}: accuracy {accuracy(model):.4f}")
        ev.save("model.pt", model)
