"""Towers for real: processes of the launcher's and of torchrun's, to the end, and when one of them is killed."""

from __future__ import annotations

import re
import signal
import sys

import pytest
from running import (
    EVENER,
    RECIPE,
    Run,
    alive,
    belongings,
    check_nothing_left,
    checkpoint_files,
    evener,
    here,
    start,
    until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TRAIN = ("--train-steps", "60", "--batch-size", "20", "--json")


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "small.py").write_text(RECIPE)
    return f"{tmp_path / 'small.py'}:recipe"


def check_clean(capfd, logdir, step, towers=2):
    account = here(capfd, "audit", logdir, "--json")
    assert account.code == 0, account.text
    assert (account.json["clean"], account.json["step"], account.json["gradients"]) == (True, step, towers * step)
    return account.json


def test_two_towers_learn_the_digits_and_resume_under_torchrun_bit_for_bit(tmp_path, capfd):
    train = ("train", "mnist", "--set", "hidden=50", "--batch-size", "50", "--json")
    with start(tmp_path, *train, "--towers", 2, "--train-steps", 150, "--logdir", "towers") as run:
        run.wait_for(r"global step \d+/150")
        held = belongings(run.tasks())
        done = run.finish(200)
        check_nothing_left(run, held)
    assert done.code == 0, done.text
    told = {key: done.json[key] for key in ("mode", "towers", "workers", "examples")}
    assert told == {"mode": "towers", "towers": 2, "workers": 2, "examples": 150 * 100}
    assert done.json["validation_accuracy"] > 0.9
    check_clean(capfd, tmp_path / "towers", 150)

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", *EVENER[2:], *train]
    for steps in (100, 150):
        with Run([*torchrun, "--train-steps", steps, "--logdir", "ranks"], tmp_path) as run:
            done = run.finish(200)
        assert done.code == 0, done.text
        assert done.out.count('{"recipe"') == 1
    assert "continues from step 100" in done.text
    check_clean(capfd, tmp_path / "ranks", 150)
    files = [checkpoint_files(tmp_path / name / "checkpoints" / "step-00000150") for name in ("towers", "ranks")]
    assert files[0] == files[1]


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_tower_starts_all_again_from_the_newest_checkpoint(victim, recipe, tmp_path, capfd):
    gate, logdir = tmp_path / "gate", tmp_path / "run"
    args = ("train", recipe, *TRAIN, "--towers", 2, "--save-checkpoint-steps", 10, "--logdir", logdir)
    with start(tmp_path, *args, "--set", f"gate={gate}", "--set", "gate_step=25") as run:
        until(lambda: len(list(tmp_path.glob("worker:*.waits"))) == 2, 150, "both towers wait at step 25")
        killed = run.task(f"worker:{victim}")
        killed.send_signal(signal.SIGKILL)
        until(lambda: not alive([killed]), 60, "it ends")
        # Tower 0 saves what it has. If it is the one, what lies on the disk now counts, if anything was written yet.
        saved = [int(path.parent.name[5:]) for path in logdir.glob("checkpoints/step-*/manifest.json")]
        since = 25 if victim else max(saved, default=0)
        gate.touch()
        run.wait_for(rf"worker:{victim} was killed by SIGKILL; all towers start again in 0.25 s \(2 restarts left\)")
        done = run.finish(200)
        check_nothing_left(run, belongings(run.tasks()))
    assert done.code == 0, done.text
    continued = re.search(r"continues from step (\d+)", done.text)
    assert (int(continued[1]) if continued else 0) == since
    account = check_clean(capfd, logdir, 60)
    assert (account["ended"], account["lost"]) == ("reached step 60", 25 - since)
    place = f"the checkpoint of step {since}" if since else "the start, before any checkpoint"
    assert (f"{25 - since} updates since {place} are lost" in done.text) == (victim == 0)


def test_ctrl_c_saves_at_one_step_and_leaves_nothing(recipe, tmp_path, capfd):
    logdir = tmp_path / "run"
    with start(tmp_path, "train", recipe, "--train-steps", 10**6, "--towers", 2, "--logdir", logdir) as run:
        run.wait_for(r"global step \d+/1000000", 150)
        held = belongings(run.tasks())
        run.signal(signal.SIGINT)
        done = run.finish()
        check_nothing_left(run, held)
    assert done.code == 130, done.text
    step = int(re.search(r"interrupted at step (\d+)", done.text)[1])
    assert (logdir / "checkpoints" / f"step-{step:08}" / "manifest.json").exists()
    assert "final evaluation" not in done.text
    check_clean(capfd, logdir, step)


def test_a_recipe_that_fails_on_one_tower_fails_the_run_with_its_own_error(recipe, tmp_path):
    text = (tmp_path / "small.py").read_text().replace("class Gate(", """class Bad(evener.Hook):
    def after_step(self, session, result):
        if session.task == "worker:1" and result.global_step == 5:
            raise ValueError("spoiled")


class Gate(""").replace("hooks = [", "hooks = [Bad()] + [")  # fmt: skip
    (tmp_path / "small.py").write_text(text)
    done = evener(tmp_path, "train", recipe, *TRAIN, "--towers", 2, "--logdir", tmp_path / "run", seconds=200)

    assert done.code == 1
    assert re.search(r"worker:1 .*hook Bad failed in after_step: ValueError: spoiled", done.text), done.text
    assert "start again" not in done.text
