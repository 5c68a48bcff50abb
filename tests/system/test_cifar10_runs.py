"""CIFAR-10 by the command line: the same training in one process and with parameter servers."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cifar10")
    generator = np.random.default_rng(0)
    for name, count in (("data_batch_1", 20), ("test_batch", 10)):
        images = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [number % 10 for number in range(count)]
        (directory / name).write_bytes(pickle.dumps({"data": images, "labels": labels}, 2))
    return directory


def train(data_dir, logdir, *options):
    """The final parameters by name, and the figures."""
    words = [sys.executable, "-m", "evener.cli.main", "train", "cifar10", "--data-dir", str(data_dir), "--logdir",
             str(logdir), "--json", "--train-steps", "4", *options]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    parameters = {}
    for file in sorted(Path(figures["checkpoint"]).glob("*parameters*.safetensors")):
        parameters |= load_file(file)
    assert parameters
    return parameters, figures


def test_two_workers_in_sync_are_one_process_with_their_batches_put_together_distortions_too(data_dir, tmp_path):
    alone, figures = train(data_dir, tmp_path / "alone", "--batch-size", "6")
    together, others = train(
        data_dir, tmp_path / "sync", "--batch-size", "3", "--ps", "1", "--workers", "2", "--mode", "sync"
    )

    assert alone.keys() == together.keys()
    for name, parameter in alone.items():
        torch.testing.assert_close(together[name], parameter, rtol=1e-4, atol=1e-6)
    assert figures["examples"] == others["examples"] == 24
    assert others["train_loss"] == pytest.approx(figures["train_loss"], rel=1e-3)


def test_the_resnet_trains_with_a_parameter_server(data_dir, tmp_path):
    _, figures = train(
        data_dir,
        tmp_path,
        "--batch-size",
        "8",
        "--ps",
        "1",
        "--workers",
        "2",
        "--set",
        "net=resnet",
        "--set",
        "width=4",
    )
    assert figures["global_step"] == 4
    assert 0 <= figures["validation_accuracy"] <= 1
