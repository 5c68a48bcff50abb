"""Fine-tuning of a small transformer for classification: batches are dictionaries that a collate function pads,
gradients are accumulated over four of them, the embedding is frozen, the learning rate warms up and falls by update."""

import argparse
import json
import math
import random
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)

VOCABULARY, PAD = 64, 0


class Sentences(Dataset):
    """Examples {"input_ids": list, "labels": int}: are more tokens of the upper half or of the lower?"""

    def __init__(self, count, seed):
        chance = random.Random(seed)
        self.examples = []
        for _ in range(count):
            ids = [chance.randint(1, VOCABULARY - 1) for _ in range(chance.randrange(7, 21, 2))]
            upper = sum(token >= VOCABULARY // 2 for token in ids)
            self.examples.append({"input_ids": ids, "labels": int(2 * upper > len(ids))})

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def collate(examples, pad_to_multiple_of=1):
    longest = max(len(example["input_ids"]) for example in examples)
    longest = math.ceil(longest / pad_to_multiple_of) * pad_to_multiple_of
    ids = torch.full((len(examples), longest), PAD)
    for row, example in zip(ids, examples, strict=True):
        row[: len(example["input_ids"])] = torch.tensor(example["input_ids"])
    labels = torch.tensor([example["labels"] for example in examples])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


class Classifier(nn.Module):
    def __init__(self, hidden=48, layers=2, heads=4, labels=2):
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, hidden, padding_idx=PAD)
        self.positions = nn.Embedding(64, hidden)
        self.LayerNorm = nn.LayerNorm(hidden)
        layer = nn.TransformerEncoderLayer(hidden, heads, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(hidden, labels)

    def forward(self, input_ids, attention_mask, labels=None):
        x = self.embeddings(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        x = self.encoder(self.LayerNorm(x), src_key_padding_mask=attention_mask == 0)
        mask = attention_mask.unsqueeze(-1)
        logits = self.classifier((x * mask).sum(1) / mask.sum(1))
        return Output(None if labels is None else F.cross_entropy(logits, labels), logits)


def linear_schedule_with_warmup(optimizer, warmup, total):
    def factor(step):
        return step / max(1, warmup) if step < warmup else max(0.0, (total - step) / max(1, total - warmup))

    return LambdaLR(optimizer, factor)


def evaluate(model, eval_dataloader):
    model.eval()
    correct = count = 0
    for batch in eval_dataloader:
        with torch.no_grad():
            outputs = model(**batch)
        correct += (outputs.logits.argmax(dim=-1) == batch["labels"]).sum().item()
        count += len(batch["labels"])
    return {"accuracy": correct / count}


def main():
    parser = argparse.ArgumentParser(description="Finetune a transformer on a text classification task")
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--per_device_eval_batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--num_train_epochs", type=int, default=5)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=4)
    parser.add_argument("--num_warmup_steps", type=int, default=10)
    parser.add_argument("--pad_to_multiple_of", type=int, default=4)
    parser.add_argument("--amp", action="store_true", help="bfloat16")
    parser.add_argument("--output_file")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--losses", metavar="FILE")
    args = parser.parse_args()

    random.seed(args.seed)
    torch.manual_seed(args.seed)

    pad = partial(collate, pad_to_multiple_of=args.pad_to_multiple_of)
    train_dataloader = DataLoader(
        Sentences(1000, seed=1), shuffle=True, collate_fn=pad, batch_size=args.per_device_train_batch_size
    )
    eval_dataloader = DataLoader(Sentences(256, seed=2), collate_fn=pad, batch_size=args.per_device_eval_batch_size)

    model = Classifier()
    model.embeddings.requires_grad_(False)

    no_decay = ["bias", "norm"]
    named = [(name.lower(), p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if not any(nd in n for nd in no_decay)], "weight_decay": args.weight_decay},
        {"params": [p for n, p in named if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)

    updates_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
    max_train_steps = args.num_train_epochs * updates_per_epoch
    lr_scheduler = linear_schedule_with_warmup(optimizer, args.num_warmup_steps, max_train_steps)

    completed_steps = 0
    for epoch in range(args.num_train_epochs):
        model.train()
        for step, batch in enumerate(train_dataloader):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.amp):
                outputs = model(**batch)
            loss = outputs.loss / args.gradient_accumulation_steps
            loss.backward()
            if args.losses:
                with open(args.losses, "a") as file:
                    file.write(json.dumps(outputs.loss.item()) + "\n")
            if (step + 1) % args.gradient_accumulation_steps == 0 or step == len(train_dataloader) - 1:
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
                completed_steps += 1

        eval_metric = evaluate(model, eval_dataloader)
        print(f"epoch {epoch}: {eval_metric}, {completed_steps} updates")

    if args.output_file:
        torch.save(model.state_dict(), args.output_file)


if __name__ == "__main__":
    main()
