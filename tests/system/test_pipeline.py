"""One model over several processes learns what one process learns, and its failures end as all others do."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from running import belongings, check_nothing_left, start, until

import evener
from evener.state.checkpoint import load

pytestmark = pytest.mark.slow
RECIPE = f"{Path(__file__).with_name('pipeline_recipes.py')}:recipe"


def losses_of(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("net", ["chain", "residual"])
def test_two_stages_take_the_steps_of_one_process_and_their_checkpoints_go_both_ways(net, tmp_path):
    def train(losses: str, logdir: str, steps: int, **options):
        return evener.run(
            RECIPE, train_steps=steps, batch_size=24, quiet=True, logdir=tmp_path / logdir, save_summary_secs=0.1,
            recipe_options={"net": net, "losses": str(tmp_path / losses)}, **options,
        )  # fmt: skip

    one = train("one.txt", "one", 30)
    train("stages.txt", "stages", 10, pipeline_stages=2, pipeline_schedule="gpipe")
    train("stages.txt", "stages", 20, pipeline_stages=2, pipeline_schedule="1f1b", microbatches=6)
    last = train("stages.txt", "stages", 30)  # one process continues

    alone, together = losses_of(tmp_path / "one.txt"), losses_of(tmp_path / "stages.txt")
    assert len(alone) == len(together) == 30
    assert together == pytest.approx(alone, rel=1e-5)
    assert last.validation == pytest.approx(one.validation, rel=1e-5)
    manifest, contents = load(tmp_path / "stages" / "checkpoints" / "step-00000020")
    assert manifest.shards == 2
    assert contents.parameters.keys() == load(tmp_path / "one" / "checkpoints" / "step-00000030")[1].parameters.keys()


def options(tmp_path: Path, *more: object) -> list[object]:
    return ["train", RECIPE, "--pipeline-stages", 2, "--batch-size", 24, "--logdir", "run",
            "--set", f"losses={tmp_path / 'losses.txt'}", *more]  # fmt: skip


def test_ctrl_c_saves_all_stages_and_leaves_nothing(tmp_path):
    with start(tmp_path, *options(tmp_path, "--train-steps", 10**6)) as run:
        until(lambda: len(losses_of(tmp_path / "losses.txt")) > 5, 90, "six steps")
        held = belongings(run.tasks())
        assert held.left(), "the check would see what is left"
        run.signal(signal.SIGINT)
        done = run.finish(30)
        check_nothing_left(run, held)

    assert done.code == 130, done.text
    step = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert load(step)[0].step == len(losses_of(tmp_path / "losses.txt"))


def test_a_stage_that_is_killed_ends_the_run_by_its_name_and_the_same_command_continues(tmp_path):
    gate = ["--set", f"gate={tmp_path / 'gate'}", "--set", "gate_step=8", "--train-steps", 12,
            "--save-checkpoint-steps", 4]  # fmt: skip
    with start(tmp_path, *options(tmp_path, *gate)) as run:
        until(lambda: len(losses_of(tmp_path / "losses.txt")) == 8, 90, "eight steps")
        held = belongings(run.tasks())
        run.task("worker:1").kill()
        (tmp_path / "gate").touch()
        done = run.finish(60)
        check_nothing_left(run, held)

    assert done.code == 1, done.text
    assert "worker:1" in done.err
    assert "SIGKILL" in done.err
    with start(tmp_path, *options(tmp_path, *gate)) as run:
        assert run.finish().code == 0, run.said()
    assert "continues from step" in run.said()


def test_an_error_in_the_users_loss_is_shown_with_its_traceback_and_no_other(tmp_path):
    with start(tmp_path, *options(tmp_path, "--set", "fail=true", "--train-steps", 3)) as run:
        done = run.finish()

    assert done.code == 1
    assert "worker:1" in done.err
    assert done.err.count("Traceback") == 1
    assert "ValueError: this loss fails" in done.err
    assert "PeerGone" not in done.err


def test_a_stopped_stage_is_named_and_ends_the_run_at_the_stall_timeout(tmp_path):
    gate = ["--set", f"gate={tmp_path / 'gate'}", "--set", "gate_step=4", "--train-steps", 12, "--stall-timeout", 4]
    with start(tmp_path, *options(tmp_path, *gate)) as run:
        until(lambda: len(losses_of(tmp_path / "losses.txt")) == 4, 90, "four steps")
        run.task("worker:1").suspend()
        (tmp_path / "gate").touch()
        run.wait_for(r"worker:1 +waiting for SIGCONT")
        done = run.finish(60)

    assert done.code == 1, done.text
    # it was stopped at its part of lease 4, or before it had taken the order for it
    waits = "the activations and gradients of lease 4|worker:1 to take the order COMPUTE"
    assert re.search(f"worker:0 has waited 4 s for ({waits})", done.err), done.text


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ("penalty", r"the recipe's penalty is [\d.]+, but [\d.]+ as the sum over the stages"),
        ("inputs", "a pipeline takes one tensor as input, the data give dict"),
    ],
)
def test_what_stages_cannot_do_is_refused_before_the_first_step(flaw, said, tmp_path):
    with start(tmp_path, *options(tmp_path, "--set", f"flaw={flaw}", "--train-steps", 3)) as run:
        done = run.finish()
    assert done.code == 2 and re.search(said, done.err) and "without --pipeline-stages" in done.err, done.text
    assert "Traceback" not in done.err and not losses_of(tmp_path / "losses.txt")


def test_normalization_over_microbatches_is_warned_of(tmp_path):
    with start(tmp_path, *options(tmp_path, "--set", "net=normalized", "--train-steps", 2)) as run:
        done = run.finish()
    assert done.code == 0, done.text
    assert "warning: 1 normalizes over each microbatch of 12 samples, not over the batch" in done.text
