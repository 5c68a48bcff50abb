"""`evener.run` in a script: what the command does, in at most ten lines of Python, and refused where it cannot work."""

from __future__ import annotations

import signal
import sys

import pytest
import torch
from running import Run, belongings, check_nothing_left, here, script
from torch import nn

import evener
from evener.errors import ConfigError, RunFailed

#: A whole program of a user: a model of his own, trained by one ps and two workers.
TEN_LINES = """\
import evener, torch
def recipe():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    return evener.Recipe(model=lambda: torch.nn.Linear(4, 2), data=lambda: ((x, y), (x, y)),
                         optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.5))
if __name__ == "__main__":
    result = evener.run(recipe, ps=1, workers=2, mode="sync", train_steps=60, logdir="run")
    print(result.global_step, result.examples, result.validation_accuracy > 0.8)
"""


def data():
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    target = (inputs.sum(1) > 0).long()
    return (inputs, target), (inputs, target)


def recipe(rate: float = 0.1) -> evener.Recipe:
    return evener.Recipe(
        model=lambda: nn.Linear(4, 2), data=data, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=rate)
    )


finished = recipe()


@pytest.mark.slow
def test_ten_lines_of_python_train_a_model_of_ones_own_on_a_cluster(tmp_path):
    assert len(TEN_LINES.splitlines()) <= 10
    done = script(tmp_path, TEN_LINES)
    assert done.code == 0, done.text
    assert done.err == ""
    assert done.out.splitlines()[-1] == "60 12000 True"
    assert sorted(path.name for path in (tmp_path / "run" / "logs").iterdir()) == [
        "ps-0.log", "worker-0.log", "worker-1.log",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_script_without_a_guard_trains_alone_and_runs_once(tmp_path):
    text = TEN_LINES.replace('if __name__ == "__main__":', "if True:").replace('ps=1, workers=2, mode="sync", ', "")
    done = script(tmp_path, 'print("once")\n' + text)
    assert done.code == 0, done.text
    assert done.out.count("once\n") == 1
    assert done.out.splitlines()[-1] == "60 6000 True"


@pytest.mark.slow
def test_a_script_without_a_guard_is_refused_a_cluster_instead_of_starting_itself_for_ever(tmp_path):
    done = script(tmp_path, TEN_LINES.replace('if __name__ == "__main__":', "if True:"))
    assert done.code == 1
    assert "script.py starts a run while it is imported." in done.err
    assert 'put the call of evener.run under: if __name__ == "__main__":' in done.err
    assert len(list((tmp_path / "run" / "logs").iterdir())) == 3, "no task started tasks"


def test_one_process_takes_functions_and_recipes_of_any_origin(tmp_path, capfd):
    for number, one in enumerate((recipe, finished, recipe(0.2), lambda: recipe(0.3))):
        result = evener.run(one, train_steps=20, logdir=tmp_path / str(number), quiet=True)
        assert isinstance(result, evener.Result)
        assert (result.global_step, result.examples, result.ps) == (20, 2000, 0)
        assert result.validation_accuracy is not None
    again = evener.run(recipe, recipe_options={"rate": 0.1}, train_steps=20, logdir=tmp_path / "again", quiet=True)
    assert again.validation_loss == evener.evaluate(recipe(), again.checkpoint)["validation_loss"]
    assert again.validation_loss == evener.evaluate(recipe(), again.checkpoint, place="cpu")["validation_loss"]
    refused = here(capfd, "eval", f"{__file__}:recipe", "--checkpoint", again.checkpoint, "--place", "cuda:77")
    assert (refused.code, "there is no cuda:77" in refused.err) == (2, True)
    with pytest.raises(ConfigError, match="there is no cuda:77"):
        evener.evaluate(recipe(), again.checkpoint, place={"": "cuda:77"})


@pytest.mark.slow
def test_a_recipe_at_the_top_of_a_module_trains_on_a_cluster(tmp_path, capfd):
    result = evener.run(finished, ps=1, workers=1, train_steps=20, logdir=tmp_path / "run", quiet=True)
    assert (result.global_step, result.ps) == (20, 1)
    assert result.recipe == f"{__file__}:finished"
    assert capfd.readouterr() == ("", "")
    judged = here(capfd, "eval", result.recipe, "--checkpoint", result.logdir, "--json").json
    assert judged["validation_accuracy"] == result.validation_accuracy


def test_recipes_that_no_other_process_can_find_are_refused_a_cluster(tmp_path):
    rate = 0.1
    for hidden in (lambda: recipe(rate), recipe(), Callable()):
        with pytest.raises(ConfigError) as caught:
            evener.run(hidden, ps=1, logdir=tmp_path / "run")
        assert "other processes cannot find the recipe" in caught.value.what
        assert caught.value.why
        assert "top level of a module" in caught.value.fix
    assert not (tmp_path / "run").exists()


class Callable:
    def __call__(self) -> evener.Recipe:
        return recipe()


def test_unknown_options_are_refused_with_the_nearest_known_one(tmp_path):
    with pytest.raises(ConfigError) as caught:
        evener.run(recipe, train_stpes=20, logdir=tmp_path)
    assert (caught.value.what, caught.value.fix) == ("unknown option 'train_stpes'.", "did you mean 'train_steps'?")
    with pytest.raises(ConfigError) as caught:
        evener.run(recipe, recipe_options={"rat": 1}, logdir=tmp_path)
    assert "has no option 'rat'" in caught.value.what
    assert "did you mean 'rate'?" in caught.value.why
    with pytest.raises(ConfigError, match="an object of type int is no recipe"):
        evener.run(7, logdir=tmp_path)


def failing() -> evener.Recipe:
    raise ZeroDivisionError("a mistake of mine")


@pytest.mark.slow
def test_a_mistake_of_the_user_passes_through_one_process_and_is_told_of_a_task(tmp_path):
    with pytest.raises(ZeroDivisionError, match="a mistake of mine"):
        evener.run(failing, logdir=tmp_path / "alone", quiet=True)
    with pytest.raises(RunFailed, match="a mistake of mine") as caught:
        evener.run(failing, ps=1, logdir=tmp_path / "run", quiet=True)
    assert caught.value.kind == "ZeroDivisionError"
    assert caught.value.block.rstrip().endswith("ZeroDivisionError: a mistake of mine")


@pytest.mark.slow
@pytest.mark.parametrize("ps", [0, 1])
def test_ctrl_c_is_a_keyboard_interrupt_after_everything_was_saved(ps, tmp_path):
    text = TEN_LINES.replace('ps=1, workers=2, mode="sync", train_steps=60', f"ps={ps}, train_steps=10**7, log_every=9")
    lines = text.splitlines()
    lines[7] = f"    try: {lines[7].strip()}"
    lines[8] = "    except KeyboardInterrupt as interrupt: print(interrupt, flush=True); exit(3)"
    (tmp_path / "script.py").write_text("\n".join(lines))
    with Run([sys.executable, "script.py"], tmp_path) as run:
        run.wait_for(r"worker:0 +global step \d+")
        held = belongings(run.tasks())
        run.signal(signal.SIGINT)
        done = run.finish()
        check_nothing_left(run, held)
    assert (done.code, done.err) == (3, ""), done.text
    step = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1].name.removeprefix("step-")
    assert done.out.splitlines()[-1] == f"interrupted at step {int(step)}; the same command with --logdir run continues"
