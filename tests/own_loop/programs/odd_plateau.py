"""ReduceLROnPlateau, stepped by the chief alone, since only it validates. All are to follow its learning rate."""

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

import evener

torch.set_num_threads(1)
torch.manual_seed(0)
ev = evener.join()

x = torch.randn(1200, 8)
label = ((x.sum(1) + torch.randn(1200)) > 0).long()
loader = DataLoader(TensorDataset(x[:1000], label[:1000]), batch_size=20, shuffle=True)
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
model, optimizer, loader, scheduler = ev.prepare(model, optimizer, loader, scheduler)

for epoch in range(8):
    model.train()
    for inputs, target in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    print(f"epoch {epoch}: step {ev.step}, lr {optimizer.param_groups[0]['lr']:g}")  # of every worker
    if ev.chief:
        model.eval()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(x[1000:]), label[1000:]).item()
        scheduler.step(loss)
        print(f"epoch {epoch}: validation loss {loss:.4f}, next lr {scheduler.get_last_lr()[0]:g}")
