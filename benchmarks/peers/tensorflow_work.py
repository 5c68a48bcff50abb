"""The work, for TensorFlow's programs: its settings before it is imported, and batches."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.update(
    TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", TF_ENABLE_ONEDNN_OPTS="1",
    TF_NUM_INTRAOP_THREADS="1",
)  # fmt: skip

import numpy as np
from job import BATCH, Job


def samples(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """All images [N, 784] and labels [N]."""
    with np.load(job.data) as data:
        return data["inputs"], data["target"]


def batches(job: Job) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images [100, 784] and labels [100] without end, other ones for each worker."""
    inputs, target = samples(job)
    order = np.random.RandomState(job.index)
    while True:
        rows = order.randint(0, len(inputs), BATCH)
        yield inputs[rows], target[rows]
