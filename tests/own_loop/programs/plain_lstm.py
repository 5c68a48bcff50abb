"""A language model on an LSTM: its hidden state goes on from batch to batch, the gradient is clipped, and the learning
rate is a quarter whenever the validation loss has not become better."""

import argparse
import json
import math
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)


def markov_text(length, ntoken, seed):
    """Token ids [length] in which each token is followed by one of three others."""
    chance = torch.Generator().manual_seed(99)  # one language
    follows = torch.randint(0, ntoken, (ntoken, 3), generator=chance)
    chance.manual_seed(seed)
    which = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), length, replacement=True, generator=chance).tolist()
    text, token, table = [], 0, follows.tolist()
    for choice in which:
        token = table[token][choice]
        text.append(token)
    return torch.tensor(text)


def batchify(data, bsz):
    """A long text [n] cut into bsz columns [n // bsz, bsz]."""
    nbatch = data.size(0) // bsz
    return data[: nbatch * bsz].view(bsz, -1).t().contiguous()


class Windows(Dataset):
    """The i-th pair (data, target) of at most bptt tokens: [bptt, bsz], [bptt * bsz]."""

    def __init__(self, source, bptt):
        self.source, self.bptt = source, bptt

    def __len__(self):
        return math.ceil((len(self.source) - 1) / self.bptt)

    def __getitem__(self, index):
        i = index * self.bptt
        seq_len = min(self.bptt, len(self.source) - 1 - i)
        return self.source[i : i + seq_len], self.source[i + 1 : i + 1 + seq_len].view(-1)


class RNNModel(nn.Module):
    def __init__(self, ntoken, ninp, nhid, nlayers, dropout):
        super().__init__()
        self.ntoken, self.nhid, self.nlayers = ntoken, nhid, nlayers
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers)
        self.decoder = nn.Linear(nhid, ntoken)
        self.decoder.weight = self.encoder.weight  # tied
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        return self.decoder(self.drop(output)).view(-1, self.ntoken), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        return weight.new_zeros(self.nlayers, bsz, self.nhid), weight.new_zeros(self.nlayers, bsz, self.nhid)


def repackage_hidden(h):
    """The same numbers, apart from their history."""
    return h.detach() if isinstance(h, torch.Tensor) else tuple(repackage_hidden(v) for v in h)


def evaluate(model, criterion, loader, bsz):
    model.eval()
    total, count = 0.0, 0
    hidden = model.init_hidden(bsz)
    with torch.no_grad():
        for data, targets in loader:
            output, hidden = model(data, hidden)
            total += len(data) * criterion(output, targets).item()
            count += len(data)
    return total / count


def train(model, criterion, optimizer, loader, epoch, args):
    model.train()
    total_loss = 0.0
    start_time = time.time()
    hidden = model.init_hidden(args.batch_size)
    for batch, (data, targets) in enumerate(loader):
        optimizer.zero_grad()
        hidden = repackage_hidden(hidden)
        output, hidden = model(data, hidden)
        loss = criterion(output, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        if args.losses:
            with open(args.losses, "a") as file:
                file.write(json.dumps(loss.item()) + "\n")

        total_loss += loss.item()
        if batch % args.log_interval == 0 and batch > 0:
            cur_loss = total_loss / args.log_interval
            ms = (time.time() - start_time) * 1000 / args.log_interval
            lr = optimizer.param_groups[0]["lr"]
            print(
                f"| epoch {epoch:3d} | {batch:5d}/{len(loader):5d} batches | lr {lr:02.2f} | ms/batch {ms:5.2f} "
                f"| loss {cur_loss:5.2f} | ppl {math.exp(cur_loss):8.2f}"
            )
            total_loss = 0.0
            start_time = time.time()


def main():
    parser = argparse.ArgumentParser(description="LSTM language model")
    parser.add_argument("--emsize", type=int, default=48)
    parser.add_argument("--nhid", type=int, default=48)
    parser.add_argument("--nlayers", type=int, default=1)
    parser.add_argument("--lr", type=float, default=40)
    parser.add_argument("--clip", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--bptt", type=int, default=35)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1111)
    parser.add_argument("--log-interval", type=int, default=20)
    parser.add_argument("--save", metavar="FILE")
    parser.add_argument("--losses", metavar="FILE")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    ntoken, eval_batch_size = 50, 10
    train_data = batchify(markov_text(60_000, ntoken, seed=1), args.batch_size)
    val_data = batchify(markov_text(10_000, ntoken, seed=2), eval_batch_size)
    train_loader = DataLoader(Windows(train_data, args.bptt), batch_size=None, shuffle=False)
    val_loader = DataLoader(Windows(val_data, args.bptt), batch_size=None, shuffle=False)

    model = RNNModel(ntoken, args.emsize, args.nhid, args.nlayers, args.dropout)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)

    best_val_loss = None
    for epoch in range(1, args.epochs + 1):
        train(model, criterion, optimizer, train_loader, epoch, args)
        val_loss = evaluate(model, criterion, val_loader, eval_batch_size)
        print(f"| end of epoch {epoch:3d} | valid loss {val_loss:5.2f} | valid ppl {math.exp(val_loss):8.2f}")
        if not best_val_loss or val_loss < best_val_loss:
            if args.save:
                torch.save(model.state_dict(), args.save)
            best_val_loss = val_loss
        else:
            # Anneal the learning rate if no improvement has been seen in the validation dataset.
            for group in optimizer.param_groups:
                group["lr"] /= 4


if __name__ == "__main__":
    main()
