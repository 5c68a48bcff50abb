"""SIGTERM to one task of a run: it saves or gives back what it holds, and leaves; nothing is taken back."""

from __future__ import annotations

import json
import re
import signal

import pytest
from running import EVENER, PATIENCE, RECIPE, Run, evener, start, until

from evener.state.checkpoint import load

pytestmark = pytest.mark.slow
STEPS = 60


def train(place, *options, plan="", steps=STEPS):
    (place / "small.py").write_text(RECIPE)
    words = ["train", "small:recipe", "--train-steps", steps, "--logdir", "run", "--batch-size", 20,
             "--save-checkpoint-secs", 1000, "--max-restarts", 0, "--json", *options]  # fmt: skip
    return Run([*EVENER, *words], place, EVENER_CHAOS=plan)


def judge(run, place, *, lives):
    """It ended at the exact step; each life of the servers began where the one before had ended."""
    done = run.finish(PATIENCE)
    assert done.code == 0, done.text
    assert done.json["global_step"] == STEPS
    assert evener(place, "audit", "run").code == 0
    lines = [json.loads(line) for line in (place / "run" / "ledger.jsonl").read_text().splitlines()]
    begins = [at for at, line in enumerate(lines) if line[0] == "b"]
    assert len(begins) == lives
    updates = [line[1] for line in lines if line[0] == "u"]
    assert updates == list(range(1, STEPS + 1)), "no update was taken back"
    return done


@pytest.mark.parametrize("mode", ["async", "async --in-flight 2", "sync"])
def test_ps_tasks_and_a_worker_leave_one_after_the_other_and_nothing_is_taken_back(mode, tmp_path):
    plan = "worker:1/worker.computing@5=term; ps:0/server.applied@15=term; ps:1/server.applied@30=term"
    with train(tmp_path, "--ps", 2, "--workers", 2, "--mode", *mode.split(), plan=plan) as run:
        done = judge(run, tmp_path, lives=3)

    for task in ("worker:1", "ps:0", "ps:1"):
        assert re.search(rf"{task} +left, as it was told to; it starts again in 0.25 s, at no cost", done.err), done.err
    assert re.search(r"ps:0 was told to leave \(SIGTERM\); step \d+ is saved", done.err)
    assert re.search(r"ps:1 was told to leave \(SIGTERM\); step \d+ is saved", done.err)


def test_towers_stop_together_are_saved_and_start_again(tmp_path):
    with train(tmp_path, "--towers", 2, plan="worker:1/worker.computing@20=term") as run:
        done = judge(run, tmp_path, lives=2)
    assert re.search(r"left, as it was told to; all towers start again in 0.25 s at no cost", done.err), done.err


def test_everything_told_at_once_saves_first(tmp_path):
    """As `systemctl stop` and `scancel` do it."""
    with train(tmp_path, "--ps", 1, "--workers", 2, "--set", f"gate={tmp_path / 'gate'}", steps=10**6) as run:
        until(lambda: len(list(tmp_path.glob("*.waits"))) == 2, PATIENCE, "both workers wait at step 20")
        (tmp_path / "gate").touch()
        for process in [*run.tasks(), run.process]:
            process.send_signal(signal.SIGTERM)
        done = run.finish(PATIENCE)
    assert done.code == 4, done.text
    assert re.search(r"the run was told to leave \(SIGTERM\) at step \d+: all is saved, and the same", done.text), (
        done.text
    )
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert load(newest)[0].step >= 20


WAYS = {
    "sync": ["--ps", 2, "--workers", 2, "--mode", "sync"],
    "async": ["--ps", 1, "--workers", "1..2"],
    "towers": ["--towers", 2],
    "alone": [],
}


@pytest.mark.parametrize("by", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("way", WAYS)
def test_a_command_that_is_told_to_leave_ends_as_preempted_so_that_systemd_starts_it_again(way, by, tmp_path):
    """Whoever stops the command alone: `kill`, a container's end. Ctrl-C is another matter."""
    with train(tmp_path, *WAYS[way], "--set", f"gate={tmp_path / 'gate'}", steps=10**6) as run:
        until(lambda: list(tmp_path.glob("*.waits")), PATIENCE, "somebody waits at step 20")
        run.signal(getattr(signal, by))
        (tmp_path / "gate").touch()
        done = run.finish(PATIENCE)
    assert done.code == 4, done.text
    assert re.search(rf"was told to leave \({by}\).*: all is saved, and the same command with --logdir", done.text), (
        done.text
    )
    assert load(max((tmp_path / "run" / "checkpoints").glob("step-*")))[0].step >= 19


@pytest.mark.parametrize("way", WAYS)
def test_a_machine_that_gives_notice_ends_the_run_whole_and_the_same_command_goes_on(way, tmp_path):
    """The notice lies there still when it does: it is of the life before."""
    there = ["--preemption-notice", "notice", *WAYS[way], "--set", f"gate={tmp_path / 'gate'}"]
    with train(tmp_path, *there, steps=10**6) as run:
        until(lambda: list(tmp_path.glob("*.waits")), PATIENCE, "somebody waits at step 20")
        (tmp_path / "notice").write_text("terminate")
        (tmp_path / "gate").touch()
        done = run.finish(PATIENCE)
    assert done.code == 4, done.text
    assert "all is saved, and the same command with --logdir continues" in done.text
    assert "starts again" not in done.text
    saved = load(max((tmp_path / "run" / "checkpoints").glob("step-*")))[0].step

    with train(tmp_path, *there, steps=saved + 10) as run:
        done = run.finish(PATIENCE)
    assert (done.code, done.json["global_step"]) == (0, saved + 10), done.text
    assert "was there before this task: it is ignored until it changes" in done.text
    assert evener(tmp_path, "audit", "run").code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert [line[1] for line in lines if line[0] == "u"] == list(range(1, saved + 11)), "an update was taken back"


@pytest.mark.parametrize("by", ["SIGTERM", "notice"])
def test_a_task_without_a_launcher_ends_with_status_4_and_the_others_wait_for_it(by, tmp_path):
    (tmp_path / "small.py").write_text(RECIPE)
    cluster = ["--ps-hosts", "127.0.0.1:0", "--worker-hosts", "127.0.0.1:0", "--rendezvous", tmp_path / "meet"]
    more = ["--train-steps", STEPS, "--logdir", "run", "--set", f"gate={tmp_path / 'gate'}"]
    task = lambda job: ["task", "small:recipe", "--job-name", job, "--task-index", 0, *cluster, *more]  # noqa: E731
    with start(tmp_path, *task("worker")) as worker:
        with start(tmp_path, *task("ps"), "--preemption-notice", tmp_path / "notice") as ps:
            until(lambda: list(tmp_path.glob("*.waits")), PATIENCE, "the worker waits at step 20")
            if by == "notice":
                (tmp_path / "notice").touch()
            else:
                ps.signal(signal.SIGTERM)
            done = ps.finish(PATIENCE)
            assert done.code == 4, done.text
        (tmp_path / "gate").touch()
        worker.wait_for(r"ps:0 .*(gone|told to leave)")
        with start(tmp_path, *task("ps"), "--preemption-notice", tmp_path / "notice") as again:
            assert again.finish(PATIENCE).code == 0
        assert worker.finish(PATIENCE).code == 0
    assert evener(tmp_path, "audit", "run").code == 0
