"""However a run ends, nothing of it stays: no process, port, socket, shared memory or temporary file."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from running import RECIPE, Run, alive, belongings, check_nothing_left, start, until

from evener.state.checkpoint import load

STEPS = 60
#: All that a test waits for happens while every worker stands at this global step.
GATE = 20


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "small.py").write_text(RECIPE)
    return f"{tmp_path / 'small.py'}:recipe"


def at_gate(run: Run, directory: Path, workers: int = 2) -> None:
    """Until every worker stands at the gate."""
    until(lambda: len(waiting(directory)) == workers, 60, f"{workers} workers at the gate, not {waiting(directory)}")


def waiting(directory: Path) -> set[str]:
    return {path.name.split("-")[0] for path in directory.glob("worker:*.waits")}


def cluster(tmp_path: Path, recipe: str, *options: object) -> list[object]:
    """A run of two workers that stops at the gate."""
    return ["train", recipe, "--ps", 1, "--workers", 2, "--train-steps", STEPS, "--save-summary-secs", 1000,
            "--logdir", "run", "--set", f"gate={tmp_path / 'gate'}", "--set", f"gate_step={GATE}",
            *options]  # fmt: skip


def newest(tmp_path: Path) -> int:
    """The global step of the newest checkpoint, which is whole."""
    path = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    return load(path)[0].step


@pytest.mark.slow
def test_after_success(tmp_path, recipe):
    with start(tmp_path, *cluster(tmp_path, recipe)) as run:
        at_gate(run, tmp_path)
        held = belongings(run.tasks())
        assert any(name.startswith("@evener-") for name in held.left()), "the check would see what is left"
        (tmp_path / "gate").touch()
        done = run.finish()
        assert done.code == 0, done.text
        check_nothing_left(run, held)
    assert newest(tmp_path) == STEPS


@pytest.mark.slow
def test_after_ctrl_c_everything_is_saved_and_ends(tmp_path, recipe):
    args = ["train", recipe, "--ps", 1, "--workers", 2, "--train-steps", 10**6, "--log-every", 20, "--logdir", "run"]
    with start(tmp_path, *args) as run:
        run.wait_for(r"worker:0 +global step \d+")
        held = belongings(run.tasks())
        assert run.names() == {"ps:0", "worker:0", "worker:1"}
        before = newest_step_said(run)
        run.signal(signal.SIGINT)
        done = run.finish()
        assert done.code == 130
        check_nothing_left(run, held)
    step = re.search(r"interrupted at step (\d+); the same command with --logdir run continues", done.err)
    assert step is not None, done.text
    assert "Traceback" not in done.text
    assert newest(tmp_path) == int(step[1]) >= before


def newest_step_said(run: Run) -> int:
    return max(int(step) for step in re.findall(r"global step (\d+)", run.said()))


@pytest.mark.slow
def test_after_sigterm_while_a_worker_hangs(tmp_path, recipe):
    with start(tmp_path, *cluster(tmp_path, recipe)) as run:
        at_gate(run, tmp_path)
        held = belongings(run.tasks())
        run.signal(signal.SIGTERM)
        done = run.finish()
        assert done.code == 4, done.text
        check_nothing_left(run, held)
    assert newest(tmp_path) in (GATE, GATE + 1), "both workers may have been at step 19"


@pytest.mark.slow
def test_a_second_interrupt_ends_everything_at_once(tmp_path, recipe):
    with start(tmp_path, *cluster(tmp_path, recipe)) as run:
        at_gate(run, tmp_path)
        held = belongings(run.tasks())
        run.signal(signal.SIGINT)
        run.wait_for("press Ctrl-C again to end at once")
        run.signal(signal.SIGINT)
        done = run.finish()
        assert done.code == 130, done.text
        check_nothing_left(run, held)


@pytest.mark.slow
def test_an_interrupt_at_the_start_ends_what_has_started(tmp_path, recipe):
    with start(tmp_path, *cluster(tmp_path, recipe)) as run:
        until(lambda: len(alive(run.tasks())) == 3, 60, "three tasks")
        held = belongings(run.tasks())
        run.signal(signal.SIGINT)
        done = run.finish()
        assert done.code == 130, done.text
        check_nothing_left(run, held)


@pytest.mark.slow
def test_one_process_ends_too(tmp_path, recipe):
    args = ["train", recipe, "--train-steps", 10**7, "--log-every", 20, "--logdir", "run"]
    with start(tmp_path, *args) as run:
        run.wait_for(r"worker:0 +global step \d+")
        run.signal(signal.SIGINT)
        done = run.finish()
        assert (done.code, "Traceback" in done.text) == (130, False), done.text
        check_nothing_left(run, belongings([]))
    assert f"interrupted at step {newest(tmp_path)};" in done.err


@pytest.mark.slow
def test_after_kill_9_of_the_launcher(tmp_path, recipe):
    """Also the task that was stopped, and so cannot see anything, goes."""
    with start(tmp_path, *cluster(tmp_path, recipe, "--transport", "tcp")) as run:
        at_gate(run, tmp_path)
        assert run.names() == {"ps:0", "worker:0", "worker:1"}
        held = belongings(run.tasks())
        assert any(name.startswith("port ") for name in held.left()), "the check would see what is left"
        run.task("worker:1").suspend()
        run.signal(signal.SIGKILL)
        check_nothing_left(run, held)
        assert run.finish().code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_killed_worker_is_started_again_and_the_run_ends_as_asked(mode, tmp_path, recipe):
    with start(tmp_path, *cluster(tmp_path, recipe, "--mode", mode, "--json")) as run:
        at_gate(run, tmp_path)
        held = belongings(run.tasks())
        run.task("worker:1").kill()
        run.wait_for(r"worker:1 +was killed by SIGKILL; it starts again in 0.25 s \(2 restarts left\)")
        log = tmp_path / "run" / "logs" / "ps-0.log"
        until(lambda: re.search(r"worker:1 joined: .* epoch 2", log.read_text()), 60, "worker:1 is back")
        held_now = belongings(run.tasks())
        (tmp_path / "gate").touch()
        done = run.finish()
        assert done.code == 0, done.text
        check_nothing_left(run, held)
        check_nothing_left(run, held_now)
    result = done.json
    assert result["global_step"] == STEPS
    assert result["examples"] == STEPS * 100 * (2 if mode == "sync" else 1)
    assert newest(tmp_path) == STEPS


@pytest.mark.slow
def test_a_worker_that_comes_back_after_the_end_is_not_waited_for(tmp_path, recipe):
    with start(tmp_path, *cluster(tmp_path, recipe, "--json")) as run:
        at_gate(run, tmp_path)
        held = belongings(run.tasks())
        run.task("worker:1").kill()
        run.wait_for("worker:1 +was killed by SIGKILL; it starts again")
        (tmp_path / "gate").touch()
        done = run.finish()
        assert done.code == 0, done.text
        assert done.json["global_step"] == STEPS
        check_nothing_left(run, held)


@pytest.mark.slow
def test_a_worker_that_may_not_be_started_again_ends_the_run(tmp_path, recipe):
    """In plain sync nobody can take its place; the other modes go on without it (tests/system/test_faults.py)."""
    with start(tmp_path, *cluster(tmp_path, recipe, "--max-restarts", 0, "--mode", "sync")) as run:
        at_gate(run, tmp_path)
        held = belongings(run.tasks())
        run.task("worker:1").kill()
        done = run.finish(10.0)
        assert done.code == 1
        assert re.search(
            r"^worker:1 on \S+ failed with TaskFailed: worker:1 was killed by SIGKILL\.\n  fix: .*worker-1\.log",
            done.err, re.MULTILINE,
        ), done.err  # fmt: skip
        check_nothing_left(run, held)
    assert newest(tmp_path) in (GATE, GATE + 1), "what was trained is saved"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ps:0", "ps:1"])
def test_a_killed_ps_that_may_not_be_started_again_ends_the_run_with_its_name(victim, tmp_path, recipe):
    with start(tmp_path, *cluster(tmp_path, recipe, "--max-restarts", 0), "--ps", 1 + int(victim[-1])) as run:
        at_gate(run, tmp_path)
        held = belongings(run.tasks())
        run.task(victim).kill()
        (tmp_path / "gate").touch()  # the workers find out by themselves too
        done = run.finish(15.0)
        assert done.code == 1
        assert re.search(rf"^{victim} on \S+ failed with TaskFailed: {victim} was killed by SIGKILL\.", done.err,
                         re.MULTILINE), done.err  # fmt: skip
        assert "Traceback" not in done.text
        check_nothing_left(run, held)
