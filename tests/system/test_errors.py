"""Whatever is wrong, a person is told what, why and how to mend it, by the exit code too, and soon."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

import pytest
import torch
from running import Done, belongings, check_nothing_left, evener, here, start

from evener.state.checkpoint import load

#: Recipes with one mistake each, made in training from the sixth batch of a task on.
BAD = """
import torch
from torch import nn
from torch.nn import functional as F

import evener

calls = 0


def sixth():
    global calls
    calls += 1
    return calls >= 6


def mistake(where):
    raise ValueError(f"a mistake of mine in {where}")


def data():
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    target = (inputs.sum(1) > 0).long()
    return (inputs, target), (inputs, target)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Net(nn.Linear):
    def forward(self, x):
        if self.training and sixth():
            mistake("forward")
        return super().forward(x)


class BadHook(evener.Hook):
    def after_step(self, session, result):
        if result.local_step == 6:
            mistake("a hook")


class Integers(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
        self.count = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)


def loss_raises(output, target):
    if sixth():
        mistake("loss")
    return F.cross_entropy(output, target)


def loss_is_nan(output, target):
    loss = F.cross_entropy(output, target)
    return loss * float("nan") if output.requires_grad and sixth() else loss


def steep(model):
    return (model.weight - model.weight.detach()).sum().sqrt() if sixth() else model.weight.sum() * 0


def made(**parts):
    return evener.Recipe(**{"model": lambda: nn.Linear(4, 2), "data": data, "optimizer": sgd, "metrics": {}, **parts})


forward = made(model=lambda: Net(4, 2))
loss = made(loss=loss_raises)
bad_data = made(data=lambda: mistake("data"))
hook = made(hooks=lambda: [BadHook()])
empty = made(model=lambda: nn.Identity())
integers = made(model=Integers)
vector = made(loss=lambda output, target: F.cross_entropy(output, target, reduction="none"))
number = made(loss=lambda output, target: 0.5)
detached = made(loss=lambda output, target: F.cross_entropy(output, target).detach())
nan = made(loss=loss_is_nan)
infinite = made(penalty=steep)


def no_recipe():
    return nn.Linear(4, 2)


def not_found():
    import no_such_module
"""

#: mistake -> what is said of it, its exit code, and the last line of the traceback if it is the user's own
MISTAKES = {
    "forward": ("ValueError: a mistake of mine in forward", 1, "ValueError: a mistake of mine in forward"),
    "loss": ("ValueError: a mistake of mine in loss", 1, "ValueError: a mistake of mine in loss"),
    "bad_data": ("ValueError: a mistake of mine in data", 1, "ValueError: a mistake of mine in data"),
    "hook": ("hook BadHook failed in after_step: ValueError: a mistake", 1, "ValueError: a mistake of mine in a hook"),
    "not_found": ("No module named 'no_such_module'", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
    "empty": ("the model has nothing to train: 0 parameters", 2, ""),
    "integers": ("parameter 'count' holds int64 numbers", 2, ""),
    "vector": ("has shape [", 2, ""),
    "number": ("returned float, not a tensor", 2, ""),
    "detached": ("does not depend on the model's parameters", 2, ""),
    "nan": (r"the loss of worker:\d is nan at global step \d+ \(local step 6\), lease \d+", 1, ""),
    "infinite": (
        r"gradient of 'weight'(, which)? is not finite, at global step \d+, lease \d+ \(samples .*loss 0?[.\d]+\)",
        1,
        "",
    ),
    "no_recipe": ("no_recipe returned an object of type Linear", 2, ""),
}
IN_CLUSTER = ("forward", "bad_data", "hook", "empty", "vector", "nan", "infinite")


@pytest.fixture
def bad(tmp_path) -> str:
    (tmp_path / "bad.py").write_text(BAD)
    return str(tmp_path / "bad.py")


def check_told(done: Done, code: int, said: str, own: str = "", *, says_why: bool = False) -> None:
    """An error that a person can use: its exit code, what, why, fix; the user's own traceback once and last."""
    assert done.code == code, done.text
    assert re.search(said if "\\" in said else re.escape(said), done.err), done.text
    if own:
        assert done.text.count("Traceback (most recent call last)") == 1, done.text
        assert done.err.rstrip().splitlines()[-1] == own
    else:
        assert "Traceback" not in done.text, done.text
        assert re.search(r"^  fix: \S", done.err, re.MULTILINE), done.text
        assert not says_why or re.search(r"^  why: \S", done.err, re.MULTILINE), done.text


def check_finite_checkpoint(logdir: Path) -> None:
    steps = sorted((logdir / "checkpoints").glob("step-*"))
    assert steps, "what was trained before the mistake is saved"
    _, contents = load(steps[-1])
    assert all(torch.isfinite(tensor).all() for tensor in contents.parameters.values())


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_recipe_is_told_in_one_process(name, bad, tmp_path, capfd):
    said, code, own = MISTAKES[name]
    args = ["train", f"{bad}:{name}", "--train-steps", 50, "--save-checkpoint-steps", 2, "--logdir", tmp_path / "run"]
    done = here(capfd, *args, "--json")
    check_told(done, code, said, own, says_why=code == 2)
    told = done.json
    assert told["status"] == code and told["error"]["kind"] and told["error"]["what"] in done.err
    if name in ("nan", "infinite", "forward"):
        check_finite_checkpoint(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_CLUSTER)
def test_a_mistake_in_a_recipe_is_told_of_the_task_that_made_it(name, bad, tmp_path):
    said, code, own = MISTAKES[name]
    args = ["train", f"{bad}:{name}", "--ps", 1, "--workers", 2, "--train-steps", 500, "--logdir", "run"]
    with start(tmp_path, *args, "--save-checkpoint-steps", 2) as run:
        run.wait_for("waiting for its data|failed with")
        held = belongings(run.tasks())
        done = run.finish()
        check_nothing_left(run, held)
    check_told(done, code, said, own, says_why=code == 2)
    guilty = "ps:0" if name == "infinite" else r"(ps|worker):\d"
    assert re.match(rf"{guilty} on \S+ failed with \w+: ", done.err), done.err
    assert len(re.findall(r"failed with \w+:", done.text)) == 1, "the first cause alone is told"
    if name == "infinite":
        assert re.search(r"worker:\d pushed the gradient of 'weight'", done.err)
    if name in ("nan", "infinite", "forward", "hook"):
        check_finite_checkpoint(tmp_path / "run")


#: options -> what is said of them; all of them wrong usage
OPTIONS = {
    "--ps -1": "ps=-1 cannot work.",
    "--workers 0": "workers=0 cannot work.",
    "--ps 1 --workers 0": "workers=0 cannot work.",
    "--workers 2": "2 workers have nobody to hold their parameters.",
    "--ps x": "argument --ps: invalid int value: 'x'.",
    "--mode asink": "unknown mode 'asink'.\n  fix: did you mean 'async'?",
    "--transport udp": "unknown transport 'udp'.",
    "--ps 2 --placement evn": "evn",
    "--ps 1 --workers 2 --mode sync --replicas-to-aggregate 5": "can never take a step with 2 workers.\n  why: ",
    "--ps 1 --mode sync --replicas-to-aggregate 0": "replicas_to_aggregate=0 cannot work.",
    "--replicas-to-aggregate 1": "replicas_to_aggregate=1 means nothing without ps tasks.\n  why: ",
    "--ps 1 --workers 2 --accumulate": "accumulate=True means nothing in mode async.\n  why: ",
    "--towers 2 --elastic": "elastic=True means nothing without ps tasks.\n  why: ",
    "--ps 1 --mode sync --staleness 4": "staleness=4 means nothing in mode sync.\n  why: ",
    "--ps 1 --mode bounded --staleness -1": "staleness=-1 cannot work.",
    "--ps 2 --ps-hosts 127.0.0.1:2222": "1 ps hosts are named, but ps=2.",
    "--train-steps -1": "train_steps=-1 cannot work.",
    "--epochs 0": "epochs=0.0 cannot work.",
    "--epochs nan": "epochs=nan cannot work.",
    "--epochs 1 --train-steps 5": "both train_steps=5 and epochs=1.0 say how long to train.",
    "--batch-size 0": "batch_size=0 cannot work.",
    "--seed -1": "seed=-1 cannot work.",
    "--threads 0": "threads=0 cannot work.",
    "--keep 0": "keep=0 cannot work.",
    "--save-checkpoint-secs 0": "save_checkpoint_secs=0.0 cannot work.",
    "--stall-timeout nan": "stall_timeout=nan cannot work.",
    "--max-restarts -1": "max_restarts=-1 cannot work.",
    "--wrokers 2": "unknown option '--wrokers'.\n  fix: did you mean '--workers'?",
    "--train-steps": "argument --train-steps: expected one argument.",
    "--set hidden": "--set hidden assigns nothing.",
    "--set hiden=5": "recipe mnist has no option 'hiden'.\n  why: ",
    "--set hidden=many": "option hidden='many' cannot be used.",
    "--hidden 0": "option hidden=0 cannot be used.",
    "--optimizer sdg": "option optimizer='sdg' cannot be used.",
    "--lr -1": "option learning_rate=-1.0 cannot be used.",
    "--data mnits": "option data='mnits' cannot be used.",
    "--data mnist": "data=mnist needs the directory of the IDX files.",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_that_cannot_work_are_refused_before_anything_is_trained(options, tmp_path, capfd):
    done = here(capfd, "train", "mnist", "--logdir", tmp_path / "run", *options.split())
    check_told(done, 2, OPTIONS[options])
    assert done.err.startswith("evener: ")
    assert not (tmp_path / "run" / "checkpoints").exists()


RECIPES = {
    "mnits": "there is no recipe 'mnits'.",
    "no/such/file.py:recipe": "there is no file no/such/file.py.",
    "no.such.module:recipe": "there is no module 'no.such.module'.",
    "evener.recipes.mnist:mnits": "there is no 'mnits' in evener.recipes.mnist.",
    "evener.recipes.mnist:RANGES": "evener.recipes.mnist:RANGES is an object of type dict.",
    ":recipe": "':recipe' does not name an object.",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_is_not_there_is_refused(recipe, tmp_path, capfd):
    check_told(here(capfd, "train", recipe, "--logdir", tmp_path / "run"), 2, RECIPES[recipe], says_why=True)
    check_told(here(capfd, "eval", recipe, "--checkpoint", tmp_path / "run"), 1, "there is no checkpoint in")


def test_wrong_commands_are_refused(capfd):
    check_told(here(capfd, "trian", "mnist"), 2, "invalid choice: 'trian'")
    check_told(here(capfd, "train"), 2, "the following arguments are required: recipe")
    check_told(here(capfd, "eval", "mnist"), 2, "the following arguments are required: --checkpoint")
    assert here(capfd).code == 2


@pytest.mark.slow
def test_the_real_command_says_the_same_alone_and_in_tasks(tmp_path):
    check_told(evener(tmp_path, "train", "mnist", "--wrokers", "2"), 2, "did you mean '--workers'?")
    done = evener(tmp_path, "train", "mnits", "--ps", 1, "--workers", 2, "--logdir", "run")
    check_told(done, 2, "there is no recipe 'mnits'", says_why=True)


def idx(shape: tuple[int, ...], nbytes: int) -> bytes:
    """An IDX file whose header promises `shape` and that holds `nbytes` values."""
    return struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape) + bytes(nbytes)


def mnist_files(directory: Path) -> None:
    """The smallest files that are whole."""
    directory.mkdir()
    for part in ("train", "t10k"):
        (directory / f"{part}-images-idx3-ubyte").write_bytes(idx((10, 28, 28), 7840))
        (directory / f"{part}-labels-idx1-ubyte").write_bytes(idx((10,), 10))


def test_data_files_that_are_missing_or_truncated_are_named(tmp_path, capfd):
    directory = tmp_path / "mnist"
    args = ["train", "mnist", "--hidden", 5, "--train-steps", 3, "--batch-size", 5, "--logdir", tmp_path / "run",
            "--data", "mnist", "--data-dir", directory]  # fmt: skip
    check_told(here(capfd, *args), 1, f"MNIST is not complete in {directory}", says_why=True)

    mnist_files(directory)
    images = directory / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    check_told(here(capfd, *args), 1, f"{images} is not the file that it should be", says_why=True)
    images.write_bytes(idx((9, 28, 28), 9 * 784))
    check_told(here(capfd, *args), 1, f"{images} holds 9 images, but ", says_why=True)
    images.write_bytes(idx((10, 28, 28), 7840))
    assert here(capfd, *args).code == 0


@pytest.mark.slow
def test_tasks_name_a_truncated_data_file(tmp_path):
    mnist_files(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx((10,), 9))
    done = evener(tmp_path, "train", "mnist", "--ps", 1, "--workers", 2, "--data", "mnist", "--data-dir", "mnist")
    check_told(done, 1, "mnist/t10k-labels-idx1-ubyte is not the file that it should be", says_why=True)
    assert re.match(r"worker:\d on \S+ failed with InputError", done.err)


@pytest.mark.parametrize("in_the_way", ["run", "run/logs", "run/checkpoints"])
def test_a_logdir_that_cannot_be_written_is_refused(in_the_way, tmp_path, capfd):
    path = tmp_path / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file of mine")
    done = here(capfd, "train", "mnist", "--hidden", 5, "--train-steps", 3, "--logdir", tmp_path / "run")
    check_told(done, 1 if in_the_way == "run/checkpoints" else 2, "run")
    assert re.search(r"(cannot be written|is not writable) \(.+\)\.", done.err), done.err
    assert path.read_text() == "a file of mine"


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(bad, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = evener(tmp_path, "train", f"{bad}:loss", "--ps", 1, "--workers", 1, "--ps-hosts", address)
    check_told(done, 2, address, says_why=True)
    assert re.match(rf"ps:0 on \S+ failed with BindError: .*{address}.* taken", done.err), done.err


def test_a_checkpoint_that_is_not_there_or_not_whole_is_refused(tmp_path, capfd):
    check_told(here(capfd, "eval", "mnist", "--checkpoint", tmp_path), 1, f"there is no checkpoint in {tmp_path}")
    logdir = tmp_path / "run"
    args = ["train", "mnist", "--hidden", 5, "--train-steps", 4, "--save-checkpoint-steps", 2, "--logdir", logdir]
    assert here(capfd, *args).code == 0
    broken = logdir / "checkpoints" / "step-00000004"
    (broken / "parameters-0.safetensors").write_bytes(b"")
    done = here(capfd, "eval", "mnist", "--checkpoint", broken)
    check_told(done, 1, f"use the newest good one: {logdir}/checkpoints/step-00000002")
    done = here(capfd, "eval", "mnist", "--checkpoint", logdir, "--hidden", 6)
    check_told(done, 1, "is of another model: 'hidden.weight' is [5, 784] in it, [6, 784] in the model", says_why=True)
