"""`evener chaos`: real schedules over a recipe and over a program with a loop of its own; defects are seen."""

from __future__ import annotations

import shlex
import sys

import pytest
from running import EVENER, RECIPE, Run, alive, evener, here

from evener.commands.chaos import cutting, play
from evener.commands.chaos.play import Measure, Trial
from evener.commands.chaos.processes import look
from evener.commands.chaos.schedule import FaultSchedule, Strike, draw
from evener.commands.chaos.training import Rehearsed

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and pidfd are Linux's")
cuts = pytest.mark.skipif(bool(cutting.missing()), reason=cutting.missing())

#: Least squares over 24 batches of 8.
PROGRAM = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import evener

ev = evener.join()
torch.manual_seed(1)
inputs = torch.randn(192, 5)
model = nn.Linear(5, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model, optimizer, loader = ev.prepare(model, optimizer, loader)
for epoch in range(int(sys.argv[1])):
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        ev.log({"loss": loss.item()})
        time.sleep(0.004)
print(sys.argv)
"""
#: A recipe that, at its fifth step, starts a process which leaves its task, its session, and everything.
LEAK = """

class Leak(evener.Hook):
    def after_step(self, session, result):
        import subprocess
        if result.local_step == 5:
            subprocess.Popen(["sleep", "1000"], start_new_session=True)


def leak():
    hooks = [Leak()]
    return evener.Recipe(model=lambda: model(8), data=data, optimizer=OPTIMIZERS["sgd"], hooks=lambda: hooks)
"""
TASKS = ["--ps", 1, "--workers", 2]
TINY = ["small.py:recipe", *TASKS, "--train-steps", 1500, "--batch-size", 20]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "small.py").write_text(RECIPE + LEAK)
    (tmp_path / "train.py").write_text(PROGRAM)
    return tmp_path


def chaos(place, *words):
    done = evener(place, "chaos", "--json", *words, seconds=350.0)
    assert done.code == 0, done.text
    assert done.json["holds"] is True
    assert done.json["undisturbed"]["ratio"] == 1.0
    return done


def check(played, seed, kinds):
    """It held, and what happened or did not is what its seed stands for."""
    schedule = draw(seed, ["ps:0", "worker:0", "worker:1"], kinds)
    happened = [(one["kind"], one["task"]) for one in played["faults"]]
    missed = [(one["kind"], one["task"]) for one in played["missed"]]
    assert sorted(happened + missed) == sorted((one.kind, one.task) for one in schedule.strikes)
    assert played["slow"] == schedule.slow
    assert all(one["holds"] for one in played["checks"])
    assert [one["name"] for one in played["checks"]] == ["end", "samples", "nothing left", "figure"]
    return happened


@linux
@pytest.mark.slow
@pytest.mark.timeout(400)
@cuts
def test_two_schedules_over_a_recipe(place):
    done = chaos(place, "--seed", 12, "--schedules", 2, "--tolerance", 0.2, *TINY)

    assert [one["seed"] for one in done.json["schedules"]] == [12, 13]
    for played in done.json["schedules"]:
        assert check(played, played["seed"], ["kill", "stop", "slow", "cut"]), "nothing happened at all"
    assert "seed 12: holds; " in done.err


@linux
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_schedule_over_a_program_with_a_loop_of_its_own(place):
    words = ["--seed", 6, "--schedules", 1, "--faults", "kill,stop", "--tolerance", 1.0]
    done = chaos(place, *words, "train.py", *TASKS, "--", 12)

    (played,) = done.json["schedules"]
    assert check(played, 6, ["kill", "stop"])
    assert played["result"]["reason"] == "every worker has left its loop"
    again = shlex.split(played["again"])
    assert again[-6:] == ["--ps", "1", "--workers", "2", "--", "12"]
    assert "--seed 6 --schedules 1 --faults kill,stop --tolerance 1 train.py" in played["again"]


@pytest.fixture
def tiny(place, monkeypatch):
    """One run of the recipe as a schedule says, in `place`."""
    monkeypatch.chdir(place)

    def tried(*strikes, recipe="recipe", limit=120.0, steps=1500):
        options = (*map(str, TASKS), "--train-steps", str(steps), "--batch-size", "20")
        training = Rehearsed(f"small.py:{recipe}", options, (), False, ps=1, workers=2)
        measure = Measure(4.0, {"ps:0": 1500, "worker:0": 750, "worker:1": 750}, limit)
        return Trial(training, FaultSchedule(0, strikes), measure, place).run()

    return tried


@linux
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_ps_that_is_killed_costs_the_updates_that_were_not_saved(tiny):
    played = tiny(Strike("kill", "ps:0", True, 0.5))
    assert played.status == 0, played.said
    (struck,) = played.struck
    assert struck.steps >= 750
    assert played.account.clean
    assert played.account.lost >= 750, "there was no checkpoint"
    assert played.left == ()


@linux
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_process_that_a_recipe_leaves_behind_is_named_and_ended(tiny, monkeypatch):
    monkeypatch.setattr(play, "PATIENCE", 1.0)
    played = tiny(recipe="leak", steps=50)
    assert played.status == 0, played.said
    sleepers = [one for one in played.left if one.endswith("(sleep 1000)")]
    assert len(sleepers) == 2, "one of each worker"
    for one in sleepers:
        seen = look(int(one.split()[1]))
        assert seen is None or seen[0].state == "Z"


@linux
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_that_does_not_end_is_ended_at_its_limit(tiny):
    played = tiny(limit=5.0, steps=10_000_000)
    assert played.status is None
    assert played.seconds >= 5.0


@linux
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_training_that_fails_undisturbed_is_not_disturbed(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    monkeypatch.setattr("tempfile.tempdir", str(place))  # its files stay
    done = here(capfd, "chaos", "--schedules", 1, "--faults", "kill", "small.py:nothing", *TASKS)
    assert done.code == 2
    assert "the training fails undisturbed, with status 2" in done.err
    assert "there is no 'nothing' in small.py" in done.err
    assert "seed" not in done.out


@linux
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("shell", ["exec", "trap '' INT; exec"], ids=["", "begun in a script's background"])
def test_interrupted_it_leaves_no_process(shell, place):
    """Shells have Ctrl-C ignored by what a script begins with `&`; a run takes it all the same, and so does this."""
    words = ["chaos", "--schedules", 1, "--faults", "kill", *TINY[:-4], "--train-steps", 10_000_000]
    with Run(["sh", "-c", f'{shell} "$@"', "sh", *EVENER, *words], place) as run:
        while not {"ps:0", "worker:0", "worker:1"} <= run.names():
            assert run.process.poll() is None, run.said()
        run.signal(2)
        assert run.finish(60.0).code == 130
        assert alive(run.tasks()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["small.py:recipe"], "a run of one process survives nothing"),
        ([*TINY, "--schedules", 3], "--schedules stands after small.py:recipe"),
        ([*TINY, "--bogus", 3], "unknown option '--bogus'"),
        ([*TINY, "--logdir", "run"], "evener chaos takes no --logdir"),
        ([*TINY, "--ps-hosts", "127.0.0.1:4000"], "evener chaos takes no --ps-hosts"),
        ([*TINY, "--pipeline-stages", 2], "evener chaos plays no pipelines"),
        (["--faults", "rain", *TINY], "--faults names 'rain'"),
        (["--faults", "cut", "small.py:recipe", "--towers", 2], "towers have no links to ps tasks"),
        (["--faults", "slow", *TINY, "--slow", "worker:0=2x"], "the command has a --slow of its own"),
        (["--schedules", 0, *TINY], "--schedules and --limit must be above 0"),
        (["--tolerance", "nan", *TINY], "--tolerance nan cannot be"),
        ([*TINY, "--", 3], "a recipe has no words of its own"),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(words, told, capfd):
    done = here(capfd, "chaos", *words)
    assert done.code == 2
    assert told in done.err
    assert "fix: " in done.err
