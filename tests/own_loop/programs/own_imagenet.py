"""A small ResNet on augmented images: worker processes of a DataLoader, two param groups, warmup and cosine per batch,
the best model kept."""

import argparse
import json
import math
import random
import shutil
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import evener

torch.set_num_threads(1)


class Shapes(Dataset):
    """Coloured stripes, checks, discs and gradients under noise: four classes."""

    def __init__(self, count, train, seed):
        self.count, self.train, self.seed = count, train, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        chance = random.Random(self.seed * 1_000_003 + index)
        label = index % 4
        y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
        phase, step = chance.uniform(0, 6), chance.uniform(0.9, 1.4)
        if label == 0:
            picture = torch.sin(step * x + phase)
        elif label == 1:
            picture = torch.sin(step * x + phase) * torch.sin(step * y + phase)
        elif label == 2:
            picture = ((x - 8 - phase / 2) ** 2 + (y - 10) ** 2 < 36 * step).float() * 2 - 1
        else:
            picture = (x + y) / 20 * chance.choice([-1, 1])
        colour = torch.tensor([chance.uniform(0.3, 1) for _ in range(3)]).view(3, 1, 1)
        noise = torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(index))
        image = picture * colour + 1.6 * noise
        if self.train:  # random crop, random flip
            top, left = torch.randint(0, 5, (2,)).tolist()
            image = image[:, top : top + 16, left : left + 16]
            if random.random() < 0.5:
                image = image.flip(2)
        else:
            image = image[:, 2:18, 2:18]
        return image, label


class Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride != 1 or inside != outside:
            self.down = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        identity = x if self.down is None else self.down(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + identity)


def resnet(classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        Block(8, 8, 1), Block(8, 16, 2), Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes),
    )  # fmt: skip


class AverageMeter:
    def __init__(self, name, fmt=":.3f"):
        self.name, self.fmt = name, fmt
        self.val = self.sum = self.count = self.avg = 0

    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count

    def __str__(self):
        return ("{name} {val" + self.fmt + "} ({avg" + self.fmt + "})").format(**self.__dict__)


def accuracy(output, target):
    return (output.argmax(1) == target).float().mean().item() * 100


def parameter_groups(model, weight_decay):
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def train(train_loader, model, criterion, optimizer, scheduler, epoch, args):
    batch_time, losses, top1 = AverageMeter("Time"), AverageMeter("Loss"), AverageMeter("Acc@1")
    model.train()
    end = time.time()
    for i, (images, target) in enumerate(train_loader):
        output = model(images)
        loss = criterion(output, target)
        losses.update(loss.item(), images.size(0))
        top1.update(accuracy(output, target), images.size(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if args.losses:
            with open(args.losses, "a") as file:
                file.write(json.dumps(loss.item()) + "\n")
        batch_time.update(time.time() - end)
        end = time.time()
        if i % args.print_freq == 0:
            print(f"Epoch: [{epoch}][{i}/{len(train_loader)}]", batch_time, losses, top1, sep="\t")


def validate(val_loader, model, criterion):
    losses, top1 = AverageMeter("Loss"), AverageMeter("Acc@1")
    model.eval()
    with torch.no_grad():
        for images, target in val_loader:
            output = model(images)
            losses.update(criterion(output, target).item(), images.size(0))
            top1.update(accuracy(output, target), images.size(0))
    print(f" *   Acc@1 {top1.avg:.3f} Loss {losses.avg:.3f}")
    return top1.avg


def save_checkpoint(state, is_best, directory):
    torch.save(state, directory / "checkpoint.pth.tar")
    if is_best:
        shutil.copyfile(directory / "checkpoint.pth.tar", directory / "model_best.pth.tar")


def main():
    parser = argparse.ArgumentParser(description="PyTorch ImageNet-style training")
    parser.add_argument("-j", "--workers", default=2, type=int)
    parser.add_argument("--epochs", default=4, type=int)
    parser.add_argument("-b", "--batch-size", default=32, type=int)
    parser.add_argument("--lr", "--learning-rate", default=0.1, type=float, dest="lr")
    parser.add_argument("--momentum", default=0.9, type=float)
    parser.add_argument("--wd", "--weight-decay", default=1e-4, type=float, dest="weight_decay")
    parser.add_argument("--warmup", default=10, type=int, help="batches")
    parser.add_argument("-p", "--print-freq", default=10, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--directory", type=Path, help="for checkpoints")
    parser.add_argument("--losses", metavar="FILE")
    args = parser.parse_args()
    ev = evener.join()

    random.seed(args.seed)
    torch.manual_seed(args.seed)

    train_dataset, val_dataset = Shapes(1000, True, seed=1), Shapes(200, False, seed=2)
    train_loader = DataLoader(
        train_dataset, batch_size=args.batch_size, shuffle=True, num_workers=args.workers, pin_memory=False,
        drop_last=True, persistent_workers=args.workers > 0,
    )  # fmt: skip
    val_loader = DataLoader(val_dataset, batch_size=100)

    model = resnet()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(parameter_groups(model, args.weight_decay), args.lr, momentum=args.momentum)
    total = args.epochs * len(train_loader)

    def factor(step):
        if step < args.warmup:
            return (step + 1) / args.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - args.warmup) / (total - args.warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model, optimizer, train_loader, scheduler = ev.prepare(model, optimizer, train_loader, scheduler)

    best_acc1 = 0
    for epoch in range(args.epochs):
        train(train_loader, model, criterion, optimizer, scheduler, epoch, args)
        if not ev.chief:
            continue

        acc1 = validate(val_loader, model, criterion)
        is_best = acc1 > best_acc1
        best_acc1 = max(acc1, best_acc1)
        if args.directory:
            state = {
                "epoch": epoch + 1,
                "state_dict": model.state_dict(),
                "best_acc1": best_acc1,
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
            }
            save_checkpoint(state, is_best, args.directory)


if __name__ == "__main__":
    main()
