"""The next batch is made in a thread of its own while this one is computed, with ps tasks too."""

from __future__ import annotations

from collections import Counter

import pytest
from running import evener

pytestmark = pytest.mark.slow

STEPS = 200
QUIET = """
import os, threading

import torch
from torch import nn

import evener


class Samples:
    thread_safe = True

    def __init__(self, count):
        self.inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
        self.target = (self.inputs.sum(1) > 0).long()

    def __len__(self):
        return len(self.inputs)

    def batch(self, indices):
        with open(f"made-{os.getpid()}", "a") as file:
            file.write(threading.current_thread().name + "\\n")
        return self.inputs[indices], self.target[indices]


recipe = evener.Recipe(
    model=lambda: nn.Linear(6, 2), data=lambda: (Samples(500), Samples(100)),
    optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
)
"""


def makers(tmp_path, *options):
    """How many batches were made by which thread, in a run that ends whole."""
    (tmp_path / "quiet.py").write_text(QUIET)
    words = ["train", "quiet.py:recipe", "--ps", 1, "--workers", 2, "--train-steps", STEPS, "--logdir", "run"]
    done = evener(tmp_path, *words, *options)
    assert done.code == 0, done.text
    audit = evener(tmp_path, "audit", "run")
    assert audit.code == 0, audit.text
    return Counter(line for file in tmp_path.glob("made-*") for line in file.read_text().split())


@pytest.mark.parametrize(
    "options", [["--mode", "async"], ["--in-flight", 2], ["--mode", "sync"], ["--mode", "bounded"]]
)
def test_nearly_all_are_made_ahead_where_a_worker_knows_its_next_one(options, tmp_path):
    made = makers(tmp_path, *options)

    assert made["prefetch"] >= STEPS * 0.8


@pytest.mark.parametrize("options", [["--mode", "ringmaster"], ["--mode", "sync", "--replicas-to-aggregate", 1]])
def test_none_is_where_it_is_for_others_to_take(options, tmp_path):
    made = makers(tmp_path, *options)

    assert not made["prefetch"] and made["MainThread"] >= STEPS
