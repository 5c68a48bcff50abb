"""`--workers 1..3`: runs that begin with who is here and go on with who is left, in real processes that are killed."""

from __future__ import annotations

import re

import pytest
import torch
from running import EVENER, PATIENCE, Run, evener, until
from test_batch_sizes_runs import SMALL
from test_own_loop import SMALL as OWN_LOOP

from evener import load

STEPS = 40
ALL_THREE = ("--set", "together=3")
GONE = r"{} +was killed by SIGKILL; the others go on without it"


def train(place, logdir, *options, plan="", length=("--train-steps", STEPS)):
    (place / "small.py").write_text(SMALL)
    words = ["train", "small.py:double", *length, "--logdir", logdir, "--max-restarts", 0, "--json", *options]
    with Run([*EVENER, *words], place, EVENER_CHAOS=plan) as run:
        return run.finish(PATIENCE)


def apart(place, one, other):
    values = [torch.cat([value.flatten() for value in load("small.py:double", place / path).state_dict().values()])
              for path in (one, other)]  # fmt: skip
    return float((values[0] - values[1]).norm() / values[1].norm())


def test_by_speed_a_run_that_loses_two_of_three_workers_for_good_is_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path, "one", "--batch-size", 21).code == 0
    plan = "worker:0/worker.computing@9=kill; worker:2/worker.pushed@17=kill"
    sync = ["--ps", 1, *ALL_THREE, "--workers", "1..3", "--mode", "sync", "--batch-by-speed", "--batch-size", 7]
    done = train(tmp_path, "ps", *sync, plan=plan)

    assert done.code == 0, done.text
    assert "sync, batches by speed, 1 to 3 workers" in done.text
    for worker in ("worker:0", "worker:2"):
        assert re.search(GONE.format(worker), done.text), done.text
    assert apart(tmp_path, "ps", "one") < 1e-12
    assert evener(tmp_path, "audit", "ps").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async", "quorum"])
def test_a_run_of_2_to_3_begins_with_two_and_ends_whole(mode, tmp_path):
    """The third one never says who it is."""
    plan = "worker:1/worker.hello=kill"
    done = train(tmp_path, "run", "--ps", 2, "--workers", "2..3", *ALL_THREE, "--mode", mode, plan=plan)

    assert done.code == 0, done.text
    assert done.json["global_step"] == STEPS
    assert re.search(GONE.format("worker:1"), done.text), done.text
    assert evener(tmp_path, "audit", "run").code == 0


@pytest.mark.slow
def test_an_epoch_is_all_samples_once_however_many_workers_there_are(tmp_path):
    """Updates of fewer gradients are more updates."""
    plan = "worker:0/worker.computing@3=kill; worker:2/worker.pushed@5=kill"
    options = ["--ps", 1, "--workers", "1..3", *ALL_THREE, "--mode", "sync", "--batch-size", 10]
    done = train(tmp_path, "run", *options, plan=plan, length=["--epochs", 4])

    assert done.code == 0, done.text
    assert done.json["global_step"] > 20
    account = evener(tmp_path, "audit", "run", "--json").json
    assert account["clean"] and (account["examples"], account["epochs"]) == (400, 4)


@pytest.mark.slow
def test_with_fewer_than_the_fewest_left_the_run_ends_and_says_why(tmp_path):
    plan = "worker:0/worker.computing@5=kill; worker:1/worker.computing@9=kill"
    done = train(tmp_path, "run", "--ps", 1, "--workers", "2..3", *ALL_THREE, "--mode", "sync", plan=plan)

    assert done.code == 1, done.text
    first = re.search(GONE.format(r"worker:([01])"), done.text)  # whichever came first
    assert first and f"worker:{1 - int(first[1])} failed: " in done.text, done.text


@pytest.mark.slow
def test_it_waits_aloud_for_one_that_comes_back(tmp_path):
    """worker:0 sleeps after its ninth gradient, so that it cannot make all forty before worker:1 is missed."""
    plan = "worker:1/worker.computing@9=kill; worker:1#2/worker.hello=sleep:4; worker:0/worker.pushed@9=sleep:3"
    options = ["--ps", 1, "--workers", "2..2", "--mode", "async", "--max-restarts", 1]
    done = train(tmp_path, "run", *options, plan=plan)

    assert done.code == 0, done.text
    assert "waits for 2 workers: only worker 0 is here, start another worker" in done.text
    assert evener(tmp_path, "audit", "run").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "bounded"])
def test_a_program_s_own_loop_goes_on_without_one_of_three(mode, tmp_path):
    """Its loops end one by one: nobody waits for those who have finished."""
    (tmp_path / "train.py").write_text(OWN_LOOP)
    words = ["launch", "--ps", 1, "--workers", "2..3", "--mode", mode, "--max-restarts", 0, "--logdir", "run",
             "train.py", "--gate", 9]  # fmt: skip
    with Run([*EVENER, *words], tmp_path, EVENER_CHAOS="worker:1/worker.pushed@1=kill") as run:
        run.wait_for(GONE.format("worker:1"))  # however late it came: the others wait at step 9
        (tmp_path / "open").touch()
        done = run.finish(PATIENCE)

    assert done.code == 0, done.text
    account = evener(tmp_path, "audit", "run", "--json").json
    assert account["clean"] and account["examples"] == 72


@pytest.mark.slow
def test_a_program_s_own_loop_leaves_by_a_notice_and_goes_on(tmp_path):
    (tmp_path / "train.py").write_text(OWN_LOOP)
    words = [*EVENER, "launch", "--ps", 1, "--workers", 2, "--preemption-notice", "notice", "--logdir", "run"]
    with Run([*words, "train.py", "--gate", 20], tmp_path) as run:
        until(lambda: list(tmp_path.glob("waits-*")), PATIENCE, "a worker waits at step 20")
        (tmp_path / "notice").touch()
        done = run.finish(PATIENCE)
    assert done.code == 4 and "all is saved" in done.text, done.text
    with Run([*words, "train.py"], tmp_path) as run:
        done = run.finish(PATIENCE)
    assert done.code == 0, done.text
    account = evener(tmp_path, "audit", "run", "--json").json
    assert account["clean"] and (account["examples"], account["lost"]) == (72, 0)
