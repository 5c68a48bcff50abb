"""The global random generators that other people's code uses: Python's, NumPy's and PyTorch's."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """What is random from here on follows from the run's seed: before `model()`, on every task."""
    torch.manual_seed(seed)
    _seed_others(seed)


def number_of(seed: int, lease: int) -> int:
    """64 bits that follow from both."""
    return int.from_bytes(hashlib.blake2b(b"%d %d" % (seed, lease), digest_size=8).digest(), "little")


def seed_batch(seed: int, lease: int) -> None:
    """What is random in the making of this batch follows from the run's seed and its number, on whatever task."""
    number = number_of(seed, lease)
    torch.default_generator.manual_seed(number >> 1)
    _seed_others(number)


def _seed_others(number: int) -> None:
    random.seed(number)
    np.random.seed(number % 2**32)
