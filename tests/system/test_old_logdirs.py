"""A logdir that evener 9e33542 wrote goes on: alone, with ps tasks, and from some of them into another number.

The recipe's CosineAnnealingLR(T_max=20) stood at step 6 of it, with averages and AdamW's moments in two groups.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from running import evener, here

from evener.state.checkpoint import load

OLD = Path(__file__).parents[1] / "data" / "logdir_9e33542"
BEFORE, STEPS = 6, 12
SYNC = {
    "1 ps": ["--ps", 1, "--workers", 2, "--mode", "sync"],
    "2 ps": ["--ps", 2, "--workers", 2, "--mode", "sync"],
    "3 ps": ["--ps", 3, "--workers", 2, "--mode", "sync"],
    "2 towers": ["--towers", 2],
}


@pytest.fixture(params=["alone", "cluster"])
def logdir(request, tmp_path):
    shutil.copytree(OLD / request.param, tmp_path / "run")
    return tmp_path / "run"


def words(logdir, steps=STEPS):
    return ["train", f"{OLD / 'recipe.py'}:recipe", "--train-steps", steps, "--batch-size", 10, "--json", "--logdir",
            logdir]  # fmt: skip


def checked(done, logdir, capfd, step=STEPS):
    """Went on at step 6 without a word of differences, followed the schedule, and is accounted for."""
    assert (done.code, done.json.get("global_step")) == (0, step), done.text
    assert f"continues from step {BEFORE}" in done.text
    assert "warning" not in done.text, done.text
    manifest, contents = load(logdir / "checkpoints" / f"step-{step:08d}")
    for shard in manifest.values.values():
        for group in shard["groups"]:
            assert group["lr"] == pytest.approx(0.01 * (1 + math.cos(math.pi * step / 20)) / 2)
    counted = {float(value) for name, value in contents.optimizer.items() if name.endswith("/step")}
    assert counted == {float(step)}, "AdamW counted on"
    audited = here(capfd, "audit", logdir)
    assert audited.code == 0, audited.text
    return contents


@pytest.mark.parametrize("whose", ["checkpoint", "recipe"])
def test_alone(whose, logdir, capfd):
    _, before = load(logdir / "checkpoints" / f"step-{BEFORE:08d}")
    after = checked(here(capfd, *words(logdir), "--hyperparameters", whose), logdir, capfd)

    assert after.averages.keys() == before.averages.keys()
    for name, value in before.parameters.items():
        assert not torch.equal(after.parameters[name], value), name


@pytest.mark.slow
def test_with_two_servers_whoever_wrote_it(logdir, tmp_path, capfd):
    checked(evener(tmp_path, *words(logdir), "--ps", 2, "--workers", 1), logdir, capfd)


@pytest.mark.slow
def test_sync_goes_on_alike_with_any_number_of_servers_and_as_towers(tmp_path, capfd):
    ends = []
    for way, options in SYNC.items():
        logdir = tmp_path / way.replace(" ", "")
        shutil.copytree(OLD / "cluster", logdir)
        ends.append(checked(evener(tmp_path, *words(logdir), *options), logdir, capfd))
    for end in ends[1:]:
        for name, value in ends[0].parameters.items():
            torch.testing.assert_close(end.parameters[name], value, rtol=1e-5, atol=1e-7)


def test_its_leases_go_on_where_they_were(tmp_path, capfd):
    """Six steps of two workers were 12 leases of the 20 in an epoch; eight steps of one process complete it."""
    shutil.copytree(OLD / "cluster", tmp_path / "run")
    done = here(capfd, *words(tmp_path / "run", BEFORE + 8))
    checked(done, tmp_path / "run", capfd, BEFORE + 8)
    manifest, _ = load(tmp_path / "run" / "checkpoints" / f"step-{BEFORE + 8:08d}")
    assert (manifest.next_lease, manifest.unapplied) == (20, [])
