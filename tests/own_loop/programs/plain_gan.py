"""DCGAN: two models with an optimizer each, turn by turn, and the pictures of a fixed noise after each epoch."""

import argparse
import json

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)


class Rings(Dataset):
    """Grey 16x16 pictures [1, 16, 16] in -1..1 of a ring with its own centre and radius."""

    def __init__(self, count):
        chance = torch.Generator().manual_seed(5)
        self.numbers = torch.rand(count, 3, generator=chance)
        self.y, self.x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        left, top, radius = self.numbers[index].tolist()
        distance = ((self.x - 6.5 - 2 * left) ** 2 + (self.y - 6.5 - 2 * top) ** 2).sqrt()
        return (2 * torch.exp(-((distance - 3 - 2 * radius) ** 2)) - 1).unsqueeze(0)


class Generator(nn.Module):
    def __init__(self, nz, ngf):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 2, 4, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, input):
        return self.main(input)


class Discriminator(nn.Module):
    def __init__(self, ndf):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(1, ndf, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, ndf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 2, 1, 4, 1, 0, bias=False),
        )

    def forward(self, input):
        return self.main(input).view(-1)


def weights_init(m):
    if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(m.weight, 0.0, 0.02)
    elif isinstance(m, nn.BatchNorm2d):
        nn.init.normal_(m.weight, 1.0, 0.02)
        nn.init.zeros_(m.bias)


def save_samples(pictures, path):
    """A portable grey map, eight in a row."""
    rows = [torch.cat(list(row), dim=1) for row in pictures.squeeze(1).split(8)]
    grid = ((torch.cat(rows, dim=0) + 1) * 127.5).to(torch.uint8)
    with open(path, "wb") as file:
        file.write(b"P5 %d %d 255\n" % (grid.shape[1], grid.shape[0]) + bytes(grid.flatten().tolist()))


parser = argparse.ArgumentParser()
parser.add_argument("--batchSize", type=int, default=64)
parser.add_argument("--nz", type=int, default=16)
parser.add_argument("--ngf", type=int, default=16)
parser.add_argument("--ndf", type=int, default=16)
parser.add_argument("--niter", type=int, default=6, help="epochs")
parser.add_argument("--lr", type=float, default=0.001)
parser.add_argument("--beta1", type=float, default=0.5)
parser.add_argument("--manualSeed", type=int, default=3)
parser.add_argument("--outf", help="folder for pictures and models")
parser.add_argument("--losses", metavar="FILE")
opt = parser.parse_args()

torch.manual_seed(opt.manualSeed)

dataset = Rings(1024)
dataloader = DataLoader(dataset, batch_size=opt.batchSize, shuffle=True)

netG = Generator(opt.nz, opt.ngf)
netG.apply(weights_init)
netD = Discriminator(opt.ndf)
netD.apply(weights_init)

criterion = nn.BCEWithLogitsLoss()
fixed_noise = torch.randn(64, opt.nz, 1, 1)
real_label, fake_label = 1.0, 0.0

optimizerD = optim.Adam(netD.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999))
optimizerG = optim.Adam(netG.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999))

for epoch in range(opt.niter):
    for i, data in enumerate(dataloader):
        # (1) Update D network: maximize log(D(x)) + log(1 - D(G(z)))
        netD.zero_grad()
        label = torch.full((data.size(0),), real_label)
        output = netD(data)
        errD_real = criterion(output, label)
        errD_real.backward()
        D_x = output.sigmoid().mean().item()

        noise = torch.randn(data.size(0), opt.nz, 1, 1)
        fake = netG(noise)
        label.fill_(fake_label)
        output = netD(fake.detach())
        errD_fake = criterion(output, label)
        errD_fake.backward()
        errD = errD_real + errD_fake
        optimizerD.step()

        # (2) Update G network: maximize log(D(G(z)))
        netG.zero_grad()
        label.fill_(real_label)  # fake labels are real for generator cost
        output = netD(fake)
        errG = criterion(output, label)
        errG.backward()
        D_G_z = output.sigmoid().mean().item()
        optimizerG.step()

        if opt.losses:
            with open(opt.losses, "a") as file:
                file.write(json.dumps(errD.item()) + "\n" + json.dumps(errG.item()) + "\n")
        if i % 5 == 0:
            print(
                f"[{epoch}/{opt.niter}][{i}/{len(dataloader)}] Loss_D: {errD.item():.4f} Loss_G: {errG.item():.4f} "
                f"D(x): {D_x:.4f} D(G(z)): {D_G_z:.4f}"
            )

    with torch.no_grad():
        netG.eval()
        pictures = netG(fixed_noise)
        netG.train()
    away = (pictures.mean(0) - torch.stack([dataset[n] for n in range(256)]).mean(0)).abs().mean().item()
    print(f"epoch {epoch}: mean picture is {away:.4f} from the mean ring")
    if opt.outf:
        save_samples(pictures, f"{opt.outf}/fake_samples_epoch_{epoch:03d}.pgm")
        torch.save(netG.state_dict(), f"{opt.outf}/netG_epoch_{epoch}.pth")
        torch.save(netD.state_dict(), f"{opt.outf}/netD_epoch_{epoch}.pth")
