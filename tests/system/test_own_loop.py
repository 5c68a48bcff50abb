"""A program's own loop in real processes: `evener launch`, faults, Ctrl-C, and what its program does at its end."""

import json
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from running import EVENER, PATIENCE, Run, belongings, check_nothing_left, evener, here, until

from evener.commands.account import account

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
PROGRAMS = Path(__file__).parents[1] / "own_loop" / "programs"

#: Least squares in float64 over 24 batches of 8. At step `--gate` it makes a file and waits for another one.
SMALL = """
import argparse, json, os, sys, time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evener

parser = argparse.ArgumentParser()
parser.add_argument("--num_epochs", type=int, default=3)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--gate", type=int, default=0)
parser.add_argument("--ps", help="not evener's")
parser.add_argument("rest", nargs="*")
args = parser.parse_args()
ev = evener.join()
torch.manual_seed(1)
inputs = torch.randn(192, 5, dtype=torch.float64)
data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
loader = DataLoader(data, batch_size=args.batch, shuffle=True)
model, optimizer, loader, scheduler = ev.prepare(model, optimizer, loader, scheduler)
counts = []
for epoch in range(args.num_epochs):
    counts.append(0)
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        counts[-1] += 1
        ev.log({"loss": loss.item()})
        if args.gate and ev.step >= args.gate and not Path("open").exists():
            Path(f"waits-{ev.worker}").touch()
            while not Path("open").exists():
                time.sleep(0.005)
    scheduler.step()
    if ev.chief:
        print("epoch", epoch, "at step", ev.step, flush=True)
if ev.chief:
    ev.save("model.pt", model)
    with torch.no_grad():
        print("loss", nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)).item())
print("counts", json.dumps(counts), "arguments", json.dumps(sys.argv[1:]), "lr", optimizer.param_groups[0]["lr"])
"""
PS = ["--ps", 1, "--workers", 2]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "train.py").write_text(SMALL)
    return tmp_path


def audited(place, *, batches=72):
    found = account(place / "run")
    assert (found.clean, found.unapplied, found.skipped, found.examples) == (True, (), (), batches), str(found)
    return found


def launch(place, *words, **environment):
    done = evener(place, "launch", "--logdir", "run", *words, **environment)
    assert done.code == 0, done.text
    return done


# --- every way of running


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        (["--towers", 2], 36),
        ([*PS, "--mode", "sync"], 36),
        (["--ps", 2, "--workers", 3, "--mode", "bounded"], 72),
        (["--ps", 2, "--workers", 2, "--in-flight", 2], 72),
    ],
    ids=["towers", "sync", "bounded", "in flight"],
)
def test_every_way_of_running_learns_from_each_batch_once(options, updates, place):
    done = launch(place, *options, "train.py", "--num_epochs", 3, "--ps", "3", "--", "--logdir", "x")
    assert audited(place).updates == updates
    bound = 4.0 if "--in-flight" in options else 2.0  # of about 5; gradients that are three updates late learn slowly
    assert float(re.search(r"loss (\S+)", done.text)[1]) < bound
    assert '["--num_epochs", "3", "--ps", "3", "--", "--logdir", "x"]' in done.text
    counts = [json.loads(text) for text in re.findall(r"counts (\[[\d, ]+\])", done.text)]
    assert [sum(epoch) for epoch in zip(*counts, strict=True)] == [24, 24, 24]
    if updates == 36:  # the mean of two batches is the gradient of one of twice the size; the order is the seed's
        found = torch.load(place / "model.pt")
        here_ = evener(place, "launch", "--logdir", "one", "train.py", "--batch", 16)
        assert here_.code == 0, here_.text
        for name, value in torch.load(place / "model.pt").items():
            assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        (["--mode", "rennala", "--gradients-per-update", 4], 18),
        (["--mode", "ringmaster"], 72),
        (["--mode", "softsync", "--gradients-per-update", 3], 24),
        (["--mode", "quorum", "--linger", 0.05], None),
    ],
    ids=lambda words: words[1] if isinstance(words, list) else "",
)
def test_modes_that_drop_or_collect_learn_from_each_batch_once_too(options, updates, place):
    launch(place, "--ps", 1, "--workers", 3, *options, "train.py", "--num_epochs", 3)
    found = audited(place)
    assert found.epochs == 3
    assert found.updates == updates or updates is None


@pytest.mark.parametrize("ps", [1, 2])
def test_batches_of_12_8_and_4_are_one_process_at_24_also_where_workers_are_killed(ps, place):
    """float64: to rounding."""
    one = evener(place, "launch", "--logdir", "one", "train.py", "--batch", 24)
    assert one.code == 0, one.text
    alone = torch.load(place / "model.pt")
    plan = "worker:1/worker.pushing@5=kill; worker:2/worker.pushed@9=kill"
    launch(
        place, "--ps", ps, "--workers", 3, "--mode", "sync", "--batch-sizes", "12,8,4", "train.py", EVENER_CHAOS=plan
    )  # fmt: skip
    found = account(place / "run")
    assert (found.clean, found.unapplied, found.skipped, found.epochs, found.step) == (True, (), (), 3, 24), str(found)
    for name, value in torch.load(place / "model.pt").items():
        assert torch.allclose(value, alone[name], rtol=1e-12, atol=1e-12), name


def test_batches_of_a_size_of_their_own_come_once_where_a_ps_task_is_killed(place):
    """Rounds at the end of an epoch are of fewer samples: 192 are 6 rounds of 28, and 24."""
    plan = "ps:0/server.applied@12=kill"
    launch(
        place, "--ps", 1, "--workers", 3, "--mode", "sync", "--batch-sizes", "16,8,4", "--save-checkpoint-steps", 5,
        "train.py", EVENER_CHAOS=plan,
    )  # fmt: skip
    found = account(place / "run")
    assert (found.clean, found.unapplied, found.skipped, found.epochs, found.step) == (True, (), (), 3, 21), str(found)


def test_by_speed_the_loader_of_a_slow_worker_gives_fewer_samples(place):
    done = launch(
        place, *PS, "--mode", "sync", "--batch-by-speed", "--batch-size", 8, "--slow", "worker:0=10ms,worker:1=30ms",
        "train.py", "--num_epochs", 4,
    )  # fmt: skip
    found = account(place / "run")
    assert (found.clean, found.epochs, found.skipped) == (True, 4, ()), str(found)
    assert re.search(r"worker 1 gets [1-6] of 16 samples", done.text), done.text


def test_a_program_that_accumulates_is_told_that_sizes_do_not_go_with_it(place):
    (place / "train.py").write_text(SMALL.replace("optimizer.step()", "counts[-1] % 2 and optimizer.step()"))
    done = evener(
        place, "launch", *PS, "--mode", "sync", "--batch-sizes", "2,1", "--logdir", "run", "train.py",
    )  # fmt: skip
    assert done.code == 2
    assert "the program took no step with 16 of its batches" in done.text


def test_a_program_names_rules_for_late_gradients_of_its_own_too(place):
    """On ps tasks they work, are told and saved; where no gradient is late they are told to change nothing."""
    mine = (
        "class Mine:\n"
        "    keeps = ('mine_seen',)\n"
        "    def compensate(self, gradient, late, around):\n"
        "        around.kept['mine_seen'] = around.kept.get('mine_seen', 0) + 1\n"
        "        return gradient\n"
        "ev = evener.join(rules=[evener.rules.DelayAdaptive(), Mine()])"
    )
    (place / "train.py").write_text(SMALL.replace("ev = evener.join()", mine))
    done = launch(place, "--ps", 2, "--workers", 2, "train.py")
    assert "Mine keeps 2 copies of the parameters" in done.text and "changes nothing" not in done.text
    (newest,) = sorted((place / "run" / "checkpoints").glob("step-*/manifest.json"))[-1:]
    assert '"rules":["mine_seen"]' in newest.read_text() and 'mine_seen":' in newest.read_text()
    audited(place)

    done = evener(place, "launch", "--logdir", "here", "train.py")
    assert "DelayAdaptive(usual=None), Mine changes nothing without ps tasks" in done.text


@pytest.mark.parametrize("kind", ["mnist", "finetune"])
def test_alone_a_program_computes_what_it_did_without_evener(kind, tmp_path):
    """Dropout and the loader's order too: nothing is seeded, nothing drawn."""
    both = (
        "import runpy, sys\n"
        "words = sys.argv[1:]\n"
        "for name in ('plain', 'own'):\n"
        "    sys.argv = [name, '--losses', name, *words]\n"
        f"    runpy.run_path(f'{PROGRAMS}/{{name}}_{kind}.py', run_name='__main__')\n"
    )
    (tmp_path / "both.py").write_text(both)
    epochs = ["--epochs", 2] if kind == "mnist" else ["--num_train_epochs", 2]
    with Run([sys.executable, "both.py", *epochs], tmp_path) as run:
        done = run.finish()
    assert done.code == 0, done.text
    plain, own = ([float(line) for line in (tmp_path / name).read_text().split()] for name in ("plain", "own"))
    assert len(plain) == {"mnist": 46, "finetune": 250}[kind]
    assert own == pytest.approx(plain, abs=1e-6)


def test_a_gan_in_lockstep(tmp_path):
    done = launch(tmp_path, *PS, "--mode", "sync", PROGRAMS / "own_gan.py", "--niter", 2)
    assert "epoch 1: mean picture" in done.text
    audited(tmp_path, batches=2 * 16)


def test_a_stream_that_loader_processes_read(tmp_path):
    done = launch(tmp_path, *PS, PROGRAMS / "odd_iterable.py")
    assert re.search(r"epoch 2: step \d+, loss 0\.[0-5]", done.text), done.text
    assert account(tmp_path / "run").clean


@pytest.mark.parametrize("where", [(), PS, ("--towers", 2)])
def test_a_child_that_a_program_forks_ends_as_ever_and_nothing_of_the_run(where, tmp_path):
    done = launch(tmp_path, *where, PROGRAMS / "odd_fork.py")
    assert "the child has ended with 3" in done.text
    audited(tmp_path, batches=2 * 10)


@pytest.mark.parametrize("where", [PS, ("--towers", 2)])
def test_a_program_that_ends_before_evener_knows_is_taken_for_one_that_died(where, tmp_path):
    done = evener(tmp_path, "launch", *where, "--max-restarts", 0, PROGRAMS / "odd_exit.py")
    assert done.code != 0
    assert "ended with status 0 before its program was over, as by os._exit" in done.text


# --- faults


def test_tasks_that_are_killed_in_the_middle_of_an_epoch_come_back_and_no_batch_is_lost(place):
    """A worker with a batch, the ps task with an update that nobody was told of, and a worker that is told to leave."""
    plan = "worker:1/worker.pushing@8=kill; ps:0/server.applied@20=kill; worker:1#2/worker.pushing@2=term"
    done = launch(place, *PS, "--mode", "sync", "--save-checkpoint-steps", 15, "train.py", EVENER_CHAOS=plan)
    assert re.search(r"worker:1 +was killed by SIGKILL; it starts again", done.text), done.text
    assert re.search(r"ps:0 +(\d+) updates since (.*) are lost", done.text), done.text
    found = audited(place)
    assert found.step == 36
    assert found.lost > 0


@pytest.mark.parametrize("ps", [1, 2])
def test_with_a_gradient_in_flight_killed_tasks_lose_no_batch_either(ps, place):
    """Killed while a gradient is on its way and the next one's batch is in hand, and a ps task that forgets both."""
    plan = "worker:1/worker.pushed@8=kill; ps:0/server.applied@30=kill; worker:1#2/worker.pushing@2=term"
    words = ["--ps", ps, "--workers", 2, "--in-flight", 2, "--save-checkpoint-steps", 15]
    done = launch(place, *words, "train.py", EVENER_CHAOS=plan)
    assert re.search(r"worker:1 +was killed by SIGKILL; it starts again", done.text), done.text
    found = audited(place)
    assert found.step == 72
    assert found.lost > 0


@pytest.mark.parametrize("options", [[], PS, [*PS, "--in-flight", 2]], ids=["one", "async", "in flight"])
def test_ctrl_c_in_the_middle_of_an_epoch_and_the_same_command_again(options, place):
    words = ["launch", "--logdir", "run", *options, "train.py", "--gate", 30]
    waits = 2 if options else 1
    with Run([*EVENER, *words], place) as run:
        for worker in range(waits):
            _appears(run, place / f"waits-{worker}")
        run.signal(signal.SIGINT)
        run.wait_for("press Ctrl-C again|stopping") if options else None
        held = belongings(run.tasks())
        (place / "open").touch()
        done = run.finish()
        check_nothing_left(run, held)
    assert done.code == 130, done.text
    assert "the same command with --logdir run continues" in done.text
    cut = account(place / "run").step
    done = launch(place, *words[3:])
    found = audited(place)
    assert cut < found.step
    assert found.generations == 2
    assert "epoch 0" not in done.text, "it was finished"
    assert len(re.findall(r"lr 0\.03645", done.text)) == waits, "the schedule went on where it was"


def _appears(run, path):
    until(path.exists, PATIENCE, f"{path.name} in:\n{run.said()}")


# --- what a program does at its end


def test_an_exception_is_shown_with_its_place(tmp_path):
    (tmp_path / "train.py").write_text(SMALL.replace('print("counts"', 'raise ValueError("all wrong")\nprint("counts"'))
    done = evener(tmp_path, "launch", *PS, "--logdir", "run", "train.py")
    assert done.code == 1
    assert re.search(r'train\.py", line \d+, in <module>\n +raise ValueError\("all wrong"\)', done.text), done.text
    assert "ValueError: all wrong" in done.text


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(3)", 1, "train.py ended with status 3"),
        ("sys.exit('no data')", 1, "train.py ended by itself: no data"),
        ("sys.exit(0)", 0, "train.py: the script has ended"),
        ("raise KeyError('best')", 1, "KeyError: 'best'"),
    ],
)
def test_in_one_process(end, code, said, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SMALL + end)
    done = here(capfd, "launch", "--logdir", "run", "train.py", "--num_epochs", "1", "a b", "")
    assert done.code == code, done.text
    assert said in done.text
    assert '["--num_epochs", "1", "a b", ""]' in done.text


@pytest.mark.parametrize("text", ["print('hello')", "import evener\nevener.join()"], ids=["join", "prepare"])
def test_a_program_that_takes_no_part_is_told_so(text, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(text)
    done = here(capfd, "launch", "--logdir", "run", "train.py")
    assert done.code == 2
    assert "has ended without evener.join() and prepare()" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: script"),
        (["missing.py"], "there is no program 'missing.py'"),
        (["."], "there is no program '.'"),
        (["--towers", "2", "--ps", "1", "train.py"], "towers=2 and ps=1 are both given"),
        (["--epochs", "3", "train.py"], "unknown option '--epochs'"),
    ],
)
def test_commands_that_cannot_work(words, said, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SMALL)
    done = here(capfd, "launch", *words)
    assert done.code == 2
    assert said in done.err
