"""A batch size per worker, in real processes: killed, continued, too big for the memory, refused."""

from __future__ import annotations

import re

import pytest
import torch
from running import EVENER, RECIPE, Run, here

from evener import load

#: float64, without dropout: one process at 21 and workers at 12, 6 and 3 may differ by rounding alone. A worker whose
#: batch has more than `most` samples runs out of memory; `slow` makes one of them sleep for each sample.
SMALL = (
    RECIPE
    + """

def noise():
    inputs = torch.randn(100, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (inputs, inputs[:, :1].sin()), (inputs[:20], inputs[:20, :1].sin())


class Fits(nn.Module):
    def __init__(self, most):
        super().__init__()
        self.net, self.most = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double(), most

    def forward(self, inputs):
        if self.training and len(inputs) > self.most:
            raise torch.OutOfMemoryError(f"no room for {len(inputs)} samples")
        return self.net(inputs)


class Sleep(evener.Hook):
    def __init__(self, slow):
        self.slow = slow

    def before_update(self, session, loss):
        if session.task == "worker:2":
            time.sleep(self.slow * session.turn.count)


class Together(evener.Hook):
    # No worker joins before so many are there: one that starts late would miss a run of 40 steps.

    def __init__(self, count):
        self.count = count

    def begin(self, session):
        Path(f"{session.task} is here").touch()
        while len(list(Path().glob("* is here"))) < self.count:
            time.sleep(0.005)


def double(
    most: int = 10**6, slow: float = 0.0, gate: str = "", gate_step: int = 0, together: int = 0
) -> evener.Recipe:
    return evener.Recipe(
        model=lambda: Fits(most), data=noise, loss=nn.functional.mse_loss, metrics={}, name="double",
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        hooks=lambda: [
            *([Gate(gate, gate_step)] if gate else []), *([Sleep(slow)] if slow else []), Together(together)
        ],
    )
"""
)
STEPS = 40
CLUSTER = ("--ps", 1, "--workers", 3, "--mode", "sync", "--train-steps", STEPS, "--json")
SIZES = ("--batch-sizes", "12,6,3")


ONE = ("--train-steps", STEPS, "--batch-size", 21)


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "small.py").write_text(SMALL)
    return f"{tmp_path / 'small.py'}:double"


def trained(place, recipe, logdir, *options, plan=""):
    with Run([*EVENER, "train", recipe, "--logdir", place / logdir, *options], place, EVENER_CHAOS=plan) as run:
        done = run.finish()
    assert done.code == 0, done.text
    return done


def apart(recipe, logdir, other) -> float:
    one, two = (torch.cat([value.flatten() for value in load(recipe, path).state_dict().values()])
                for path in (logdir, other))  # fmt: skip
    return float((one - two).norm() / two.norm())


def clean(capfd, logdir):
    account = here(capfd, "audit", logdir, "--json")
    assert account.code == 0 and account.json["clean"], account.text
    return account.json


@pytest.mark.parametrize("ps", [1, 2])
def test_batches_of_12_6_and_3_are_one_process_at_21_also_where_a_worker_is_killed(ps, recipe, tmp_path, capfd):
    trained(tmp_path, recipe, "one", *ONE)
    plan = "worker:0/worker.computing@17=kill"
    done = trained(tmp_path, recipe, "ps", *CLUSTER, *SIZES, "--ps", ps, plan=plan)

    assert re.search(r"worker:0 is gone .*1 lease returns", done.text), done.text
    assert apart(recipe, tmp_path / "ps", tmp_path / "one") < 1e-12
    account = clean(capfd, tmp_path / "ps")
    assert (account["examples"], account["by_samples"]) == (STEPS * 21, True)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["worker.pushing@20", "worker.pushed@20", "worker.hook@20", "worker.joined@1"])
def test_at_whatever_moment_it_is_killed(point, recipe, tmp_path, capfd):
    trained(tmp_path, recipe, "one", *ONE)
    trained(tmp_path, recipe, "ps", *CLUSTER, *SIZES, "--ps", 2, plan=f"worker:1/{point}=kill")

    assert apart(recipe, tmp_path / "ps", tmp_path / "one") < 1e-12
    clean(capfd, tmp_path / "ps")


@pytest.mark.slow
def test_a_lost_ps_task_takes_the_run_back_and_every_sample_comes_once(recipe, tmp_path, capfd):
    trained(tmp_path, recipe, "one", *ONE)
    trained(tmp_path, recipe, "ps", *CLUSTER, *SIZES, "--save-checkpoint-steps", 10,
            plan="ps:0/server.applied@25=kill")  # fmt: skip

    assert apart(recipe, tmp_path / "ps", tmp_path / "one") < 1e-12
    account = clean(capfd, tmp_path / "ps")
    assert account["generations"] == 2 and account["examples"] == STEPS * 21


def test_a_run_goes_on_with_other_sizes_and_then_by_speed(recipe, tmp_path, capfd):
    trained(tmp_path, recipe, "one", *ONE)
    trained(tmp_path, recipe, "ps", *CLUSTER, *SIZES, "--train-steps", 13)
    trained(tmp_path, recipe, "ps", *CLUSTER, "--batch-sizes", "1,10,10", "--train-steps", 20)
    done = trained(tmp_path, recipe, "ps", *CLUSTER, "--batch-by-speed", "--batch-size", 7, "--set", "slow=0.02")

    assert re.search(r"worker 2 gets \d of 21 samples \(0\.\d+ of the fastest's speed\)", done.text), done.text
    assert apart(recipe, tmp_path / "ps", tmp_path / "one") < 1e-12
    assert clean(capfd, tmp_path / "ps")["examples"] == STEPS * 21


def test_a_batch_that_does_not_fit_is_halved_aloud_and_the_run_goes_on(recipe, tmp_path, capfd):
    trained(tmp_path, recipe, "one", *ONE, "--set", "most=21")
    done = trained(tmp_path, recipe, "ps", *CLUSTER, *SIZES, "--ps", 2, "--set", "most=7")

    told = re.search(r"worker:0 has not enough memory for (\d+) samples: from now on it gets at most (\d+)", done.text)
    assert told, done.text
    # 12, unless others were here so long before it that they had begun with its part of the first round
    assert 7 < int(told[1]) <= 12 and int(told[2]) == int(told[1]) // 2
    assert apart(recipe, tmp_path / "ps", tmp_path / "one") < 1e-12
    account = clean(capfd, tmp_path / "ps")
    assert account["examples"] == STEPS * 21


def test_a_single_sample_that_does_not_fit_ends_the_run(recipe, tmp_path):
    with Run([*EVENER, "train", recipe, *CLUSTER, *SIZES, "--set", "most=0"], tmp_path) as run:
        done = run.finish()
    assert done.code and "no room for 1 samples" in done.text, done.text


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "bounded"])
def test_without_rounds_an_epoch_ends_by_samples(mode, recipe, tmp_path, capfd):
    done = trained(tmp_path, recipe, "ps", "--ps", 2, "--workers", 3, "--mode", mode, "--epochs", 7, *SIZES, "--json",
                   plan="worker:1/worker.computing@9=kill")  # fmt: skip

    account = clean(capfd, tmp_path / "ps")
    assert (account["examples"], account["epochs"], account["ended"]) == (
        700,
        7,
        "all batches of 7 epochs are applied",
    ), done.text


def test_towers_of_12_6_and_3_are_one_process_at_21(recipe, tmp_path, capfd):
    trained(tmp_path, recipe, "one", *ONE)
    trained(tmp_path, recipe, "towers", "--towers", 3, *SIZES, "--train-steps", STEPS)

    assert apart(recipe, tmp_path / "towers", tmp_path / "one") < 1e-12
    account = clean(capfd, tmp_path / "towers")
    assert (account["examples"], account["by_samples"]) == (STEPS * 21, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--batch-sizes", "64,x"), "is no list of whole numbers such as 64,64,16"),
        (("--batch-sizes", "64,64"), "--batch-sizes names 2 sizes for 3 workers."),
        (("--batch-sizes", "4,4,4", "--batch-size", 7), "both --batch-sizes and --batch-size 7"),
        (("--batch-sizes", "4,4,4", "--elastic"), "--batch-sizes does not go with elastic=True."),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, says, recipe, tmp_path, capfd):
    done = here(capfd, "train", recipe, *CLUSTER, *options, "--logdir", tmp_path / "run")
    assert done.code and says in done.text, done.text
