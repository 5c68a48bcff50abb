"""A logdir is continued: from where it says, to the same bits, by another number of tasks, past what is damaged."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import torch
from running import RECIPE, Done, checkpoint_files, evener, here, start

from evener.state.checkpoint import load

pytestmark = pytest.mark.slow

ALONE = ("--save-summary-secs", "1000")  # no test here looks at curves


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "small.py").write_text(RECIPE)
    return f"{tmp_path / 'small.py'}:recipe"


def checkpoint(logdir: Path, step: int) -> Path:
    return logdir / "checkpoints" / f"step-{step:08d}"


def check_continued(done: Done, logdir: Path, step: int, last: int) -> None:
    assert done.code == 0, done.text
    assert f"continues from step {step} ({checkpoint(logdir, step)})" in done.text
    assert done.json["global_step"] == last
    assert checkpoint(logdir, last).is_dir()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_one_process_interrupted_and_resumed_is_one_process_uninterrupted_bit_for_bit(
    optimizer, recipe, tmp_path, capfd
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = ["train", recipe, "--train-steps", 60, "--set", f"optimizer={optimizer}", "--json", *ALONE]
    assert here(capfd, *args, "--logdir", whole).code == 0

    for step in (23, 41):  # the 403 samples make no whole number of batches, and 41 is in another epoch
        done = here(capfd, *args, "--logdir", parts, "--set", f"interrupt_at={step}")
        assert done.code == 130, done.text
        assert f"interrupted at step {step}; the same command with --logdir {parts} continues" in done.err
        assert done.json["status"] == done.code
    check_continued(here(capfd, *args, "--logdir", parts), parts, 41, 60)

    files = checkpoint_files(checkpoint(whole, 60))
    assert set(files) == {"parameters-0.safetensors", "averages-0.safetensors", "optimizer-0.safetensors"}
    assert checkpoint_files(checkpoint(parts, 60)) == files


@pytest.mark.slow
def test_sync_with_two_workers_interrupted_anywhere_and_resumed_is_the_same_bit_for_bit(recipe, tmp_path):
    steps = 1500
    args = ["train", recipe, "--mode", "sync", "--ps", 1, "--workers", 2, "--train-steps", steps,
            "--set", "optimizer=adam", "--json", "--log-every", "20", *ALONE, "--logdir"]  # fmt: skip
    assert evener(tmp_path, *args, "whole").code == 0

    with start(tmp_path, *args, "parts") as run:
        run.wait_for(r"worker:\d +global step \d+")
        run.signal(signal.SIGINT)
        done = run.finish()
    assert done.code == 130, done.text
    match = re.search(r"interrupted at step (\d+)", done.err)
    assert match is not None and 0 < int(match[1]) < steps, done.err
    done = evener(tmp_path, *args, "parts")
    assert (done.code, done.json["global_step"]) == (0, steps), done.text
    assert f"continues from step {match[1]} ({tmp_path}/parts/checkpoints/step-{int(match[1]):08d})" in done.text
    assert done.json["examples"] == (steps - int(match[1])) * 2 * 100

    whole, parts = (checkpoint_files(checkpoint(tmp_path / name, steps)) for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
def test_a_run_is_continued_by_any_number_of_ps_tasks(recipe, tmp_path, capfd):
    logdir = tmp_path / "run"
    args = ["train", recipe, "--set", "optimizer=adam", "--json", *ALONE, "--logdir", logdir]
    done = evener(tmp_path, *args, "--ps", 1, "--workers", 1, "--train-steps", 30)
    assert done.code == 0, done.text
    done = evener(tmp_path, *args, "--ps", 2, "--workers", 1, "--train-steps", 60)
    check_continued(done, logdir, 30, 60)
    assert done.json["examples"] == 30 * 100
    assert "averages-1.safetensors" in checkpoint_files(checkpoint(logdir, 60))
    check_continued(here(capfd, *args, "--train-steps", 90), logdir, 60, 90)

    _, contents = load(checkpoint(logdir, 90))
    steps = {float(value) for name, value in contents.optimizer.items() if name.endswith("/step")}
    assert steps == {90.0}, "Adam counted every update, whoever made it"


def test_a_finished_run_has_nothing_to_do(recipe, tmp_path, capfd):
    args = ["train", recipe, "--train-steps", 30, *ALONE, "--logdir", tmp_path / "run"]
    assert here(capfd, *args).code == 0
    before = checkpoint_files(checkpoint(tmp_path / "run", 30))
    done = here(capfd, *args)
    assert done.code == 0
    assert "already at step 30 of 30: nothing to do" in done.out
    assert checkpoint_files(checkpoint(tmp_path / "run", 30)) == before
    done = here(capfd, *args[:3], 20, *args[4:], "--json")
    assert (done.code, done.json["global_step"], done.json["examples"]) == (0, 30, 0)


def damage(path: Path) -> None:
    """One flipped bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(recipe, tmp_path, capfd):
    logdir = tmp_path / "run"
    args = ["train", recipe, "--json", *ALONE, "--logdir", logdir]
    for steps in (40, 60):
        assert here(capfd, *args, "--train-steps", steps).code == 0
    newest = checkpoint(logdir, 60) / "parameters-0.safetensors"
    damage(newest)
    done = here(capfd, *args, "--train-steps", 60)
    check_continued(done, logdir, 40, 60)
    assert f"warning: the checkpoint of step 60 is skipped: {newest} is damaged: checksum mismatch." in done.err
    assert load(checkpoint(logdir, 60))[0].step == 60, "it was made anew"

    for path in (logdir / "checkpoints").glob("step-*/averages-0.safetensors"):
        damage(path)
    done = here(capfd, *args, "--train-steps", 100)
    assert done.code == 1
    assert re.search(r"evener: none of the \d checkpoints in .* loads: .*\n  why: .*\n  fix: ", done.err), done.err
    assert "Traceback" not in done.text


def test_a_checkpoint_of_another_model_is_refused(recipe, tmp_path, capfd):
    args = ["train", recipe, "--train-steps", 20, *ALONE, "--logdir", tmp_path / "run"]
    assert here(capfd, *args).code == 0
    before = checkpoint_files(checkpoint(tmp_path / "run", 20))
    for other in ("hidden=9", "optimizer=adam"):
        done = here(capfd, *args[:3], 40, *args[4:], "--set", other)
        assert done.code == 1, done.text
        assert re.search(r"evener: .*checkpoint.*\n  why: .*\n  fix: ", done.err), done.err
        assert "Traceback" not in done.text
    assert checkpoint_files(checkpoint(tmp_path / "run", 20)) == before


@pytest.mark.slow
def test_servers_refuse_a_checkpoint_of_another_model_and_go_past_a_damaged_one(recipe, tmp_path, capfd):
    logdir = tmp_path / "run"
    args = ["train", recipe, "--json", *ALONE, "--logdir", logdir]
    cluster = ["--ps", 1, "--workers", 1]
    for steps in (20, 40):
        assert here(capfd, *args, "--train-steps", steps).code == 0

    done = evener(tmp_path, *args, *cluster, "--train-steps", 60, "--set", "hidden=9")
    assert done.code == 1
    assert re.search(r"^ps:0 .* failed with CheckpointError: .*\n  why: .*\n  fix: ", done.err, re.MULTILINE), done.err
    assert "Traceback" not in done.text

    damage(checkpoint(logdir, 40) / "optimizer-0.safetensors")
    done = evener(tmp_path, *args, *cluster, "--train-steps", 60)
    check_continued(done, logdir, 20, 60)
    assert re.search(r"ps:0 +warning: the checkpoint of step 40 is skipped: .*optimizer-0", done.err), done.err


@pytest.mark.slow
def test_a_logdir_in_use_is_refused_by_the_pid_that_uses_it(recipe, tmp_path, capfd):
    gate = tmp_path / "gate"
    args = ["train", recipe, "--train-steps", 40, "--logdir", tmp_path / "run", *ALONE]
    with start(tmp_path, *args, "--ps", 1, "--workers", 1, "--set", f"gate={gate}", "--json") as run:
        run.wait_for(r"global step \d+/40")
        holder = run.task("ps:0").pid
        done = here(capfd, *args)
        assert done.code == 1
        assert re.search(rf"is in use by another run \(pid {holder}\)\.\n  why: .*\n  fix: ", done.err), done.err
        gate.touch()
        first = run.finish()
    assert (first.code, first.json["global_step"]) == (0, 40), "the first run was not disturbed"


def test_parameters_are_files_that_any_tool_opens(recipe, tmp_path, capfd):
    from safetensors.torch import load_file

    assert here(capfd, "train", recipe, "--train-steps", 5, *ALONE, "--logdir", tmp_path / "run").code == 0
    tensors = load_file(checkpoint(tmp_path / "run", 5) / "parameters-0.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "0.weight": [8, 6], "0.bias": [8], "3.weight": [2, 8], "3.bias": [2],
    }  # fmt: skip
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
