"""Devices from the command line: the list, soft placement, tasks without GPUs, and a worker that copies."""

from __future__ import annotations

import json

import pytest
import torch
from running import RECIPE, checkpoint_files, evener, here

pytestmark = pytest.mark.slow
CUDA = torch.cuda.is_available()

#: Tells what a task sees of GPUs when its model is made, and marks the last layer.
TELLS = RECIPE.replace(
    "def model(hidden):",
    """
import json
import sys


def model(hidden):
    seen = {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "alloc": os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
            "initialized": torch.cuda.is_initialized()}
    Path(f"seen-{sys.argv[-1]}.json").write_text(json.dumps(seen))
    return plain_model(hidden)


def plain_model(hidden):""",
)

#: Its worker takes the way of another device, with the CPU in that part.
COPIES = (
    RECIPE
    + """

from functools import partial

from evener.task import parts, worker
from evener.state.tensors import CPU

worker.place_model = lambda built, *_, **__: {spec.name: CPU for spec in built.layout.specs}
parts.DeviceMemory = partial(parts.DeviceMemory, direct=False)
Path(f"copies-{os.getpid()}").touch()
"""
)


def test_the_devices_of_this_machine_are_listed(tmp_path, capfd):
    done = here(capfd, "devices")
    assert done.out.splitlines()[1].startswith("cpu ")
    listed = json.loads(here(capfd, "devices", "--json").out)
    assert listed[0]["name"] == "cpu"
    assert listed[0]["total"] >= listed[0]["free"] > 0
    assert listed[0]["cores"] >= 1
    assert len(listed) == 1 + torch.cuda.device_count()


def test_one_process_puts_what_is_missing_on_the_cpu_and_logs_the_placement(tmp_path, capfd):
    (tmp_path / "own.py").write_text(RECIPE)
    words = ["train", f"{tmp_path}/own.py:recipe", "--train_steps", "3", "--logdir", tmp_path / "run",
             "--place", "0=cuda:90,3=/gpu:91", "--log_device_placement"]  # fmt: skip
    done = here(capfd, *words)

    assert done.code == 0, done.text
    warning = "0 wanted cuda:90, is on cpu: there is no cuda:90; 3 wanted cuda:91, is on cpu: there is no cuda:91"
    assert done.out.count("warning: ") == 1
    assert f"warning: {warning}" in done.out
    assert "(Linear)" in done.out
    assert "cpu (wanted cuda:91)" in done.out
    refused = here(capfd, *words, "--no_soft_placement")
    assert refused.code == 2
    assert "there is no cuda:90" in refused.err
    assert "the devices that exist: cpu" in refused.err


def test_fewer_gpus_than_workers_is_refused_before_anything_starts(tmp_path, capfd):
    done = here(capfd, "train", "mnist", "--ps", "1", "--workers", "3", "--num_gpus", "2", "--logdir", tmp_path / "run")

    assert done.code == 2
    assert "3 workers of this machine have 2 GPUs" in done.err
    assert not (tmp_path / "run").exists()


def test_ps_tasks_see_no_gpu_and_workers_what_they_are_given(tmp_path):
    (tmp_path / "own.py").write_text(TELLS)
    done = evener(
        tmp_path, "train", "own.py:recipe", "--ps", 1, "--workers", 1, "--train-steps", 3, "--num-gpus", 1,
        "--visible-devices", "90", "--allow-growth", "--logdir", "run", PYTORCH_CUDA_ALLOC_CONF="",
    )  # fmt: skip

    assert done.code == 0, done.text
    assert "the model wanted cuda:0, is on cpu: there is no cuda:0" in done.text  # nobody has a GPU 90
    ps, worker = (json.loads((tmp_path / f"seen-{task}.json").read_text()) for task in ("ps:0", "worker:0"))
    assert ps == {"visible": "", "alloc": "", "initialized": False}
    assert worker == {"visible": "90", "alloc": "expandable_segments:True", "initialized": False}


def test_workers_that_copy_end_with_the_same_bits(tmp_path):
    found = []
    for name, text in (("direct", RECIPE), ("copied", COPIES)):
        place = tmp_path / name
        place.mkdir()
        (place / "own.py").write_text(text)
        done = evener(
            place, "train", "own.py:recipe", "--ps", 2, "--workers", 1, "--train-steps", 20,
            "--eval-every", 10, "--logdir", "run", "--json",
        )  # fmt: skip
        assert done.code == 0, done.text
        (checkpoint,) = place.glob("run/checkpoints/step-*20")
        found.append((checkpoint_files(checkpoint), done.json["validation_loss"]))

    assert found[0] == found[1]
    assert len(list((tmp_path / "copied").glob("copies-*"))) >= 1
