"""`evener audit` over real runs: workers and runs are killed, runs are continued, every sample is accounted for."""

from __future__ import annotations

import json
import re
import signal

import pytest
from running import RECIPE, evener, here, start, until

TRAIN = ("--train-steps", "300", "--batch-size", "20", "--json", "--log-every", "10")


def check_clean(capfd, logdir, step):
    account = here(capfd, "audit", logdir, "--json")
    assert account.code == 0, account.text
    assert (account.json["clean"], account.json["step"], account.json["updates"]) == (True, step, step)
    assert account.json["compared"] > 0
    return account.json


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "small.py").write_text(RECIPE)
    return f"{tmp_path / 'small.py'}:recipe"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "sync --replicas-to-aggregate 2"])
def test_a_worker_killed_midway_costs_no_sample_its_exact_account(mode, tmp_path, capfd):
    logdir = tmp_path / "run"
    cluster = ("--ps", "2", "--workers", "3", "--mode", *mode.split())
    with start(tmp_path, "train", "mnist", *TRAIN, *cluster, "--logdir", logdir) as run:
        run.wait_for(r"worker:1 +global step \d+")
        run.task("worker:1").send_signal(signal.SIGKILL)
        done = run.finish()
    assert done.code == 0, done.text

    account = check_clean(capfd, logdir, 300)
    assert account["ended"] == "reached step 300"
    assert account["examples"] == done.json["examples"]
    assert sum(account["dropped"].values()) >= done.json["dropped_gradients"]
    if mode == "async":
        assert account["unapplied"] == []
        assert account["epochs"] == 300 * 20 // account["samples"]


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [(), ("--ps", "2", "--workers", "2")], ids=["one process", "cluster"])
def test_a_run_killed_at_once_and_continued_says_what_it_lost_and_is_clean(cluster, recipe, tmp_path, capfd):
    logdir, gate = tmp_path / "run", tmp_path / "gate"
    args = ["train", recipe, *TRAIN, *cluster, "--save-checkpoint-steps", "50", "--logdir", logdir]
    with start(tmp_path, *args, "--set", f"gate={gate}", "--set", "gate_step=80") as run:
        until(lambda: len(list(tmp_path.glob("*.waits"))) == (2 if cluster else 1), 60, "all workers wait")
        if cluster:  # one process completes a checkpoint at its next step, and now it waits
            until((logdir / "checkpoints" / "step-00000050" / "manifest.json").exists, 60, "the checkpoint of step 50")
        run.tasks()
        run.signal(signal.SIGKILL)
        assert run.finish().code == -signal.SIGKILL
    kept = 50 if list(logdir.glob("checkpoints/step-00000050/manifest.json")) else 0

    known = json.loads((logdir / "ledger.jsonl").read_text().splitlines()[-1])
    assert known[0] in ("u", "s", "c")
    killed = here(capfd, "audit", logdir, "--json").json
    assert (killed["clean"], killed["ended"], killed["step"] >= 80) == (True, "", True)

    done = evener(tmp_path, *args)
    assert done.code == 0, done.text
    since = "the checkpoint of step 50" if kept else "the start, before any checkpoint"
    assert f"{killed['step'] - kept} updates since {since} are lost" in done.text
    account = check_clean(capfd, logdir, 300)
    assert (account["generations"], account["lost"]) == (2, killed["step"] - kept)
    assert account["rollbacks"] == [[kept + 1, killed["step"] + 1]]


def test_what_cannot_be_audited_is_an_error_and_what_is_wrong_is_the_exit_code(recipe, tmp_path, capfd):
    nothing = here(capfd, "audit", tmp_path)
    assert nothing.code == 1 and "ledger.jsonl cannot be read (No such file or directory)" in nothing.err
    assert here(capfd, "audit").code == 2

    logdir = tmp_path / "run"
    assert here(capfd, "train", recipe, "--train-steps", "20", "--logdir", logdir, "--quiet").code == 0
    clean = here(capfd, "audit", logdir)
    assert (clean.code, clean.out.splitlines()[-1]) == (0, "ledger clean")

    manifest = logdir / "checkpoints" / "step-00000020" / "manifest.json"
    manifest.write_text("{")
    unread = here(capfd, "audit", logdir)
    assert (unread.code, unread.out.splitlines()[-1]) == (0, "ledger clean")
    assert re.search("note: .*step-00000020.*is not a manifest of evener", unread.out), unread.out

    ledger = logdir / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:7] + lines[8:]))
    wrong = here(capfd, "audit", logdir)
    assert wrong.code == 1
    assert "line 8: step 8 comes after step 6" in wrong.out
    assert "lease 6: neither applied nor listed as unapplied" in wrong.out
