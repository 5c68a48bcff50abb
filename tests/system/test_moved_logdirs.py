"""A logdir of which a part was copied, lost, or deleted while a run was writing into it."""

from __future__ import annotations

import shutil

import pytest
from running import RECIPE, evener, here

WAYS = {"one process": (), "1 ps": ("--ps", 1, "--workers", 1), "2 ps": ("--ps", 2, "--workers", 2)}

#: Deletes the whole logdir, once, at this step.
DELETING = """
import shutil

class Delete(evener.Hook):
    def after_step(self, session, result):
        gone = Path("run").resolve().with_name("gone")
        if result.global_step >= 15 and not gone.exists():
            os.rename("run", gone)
            shutil.rmtree(gone / "checkpoints")
            os.unlink(gone / "ledger.jsonl")
"""


def trained(directory, logdir, steps, *more):
    (directory / "small.py").write_text(RECIPE)
    return evener(directory, "train", "small.py:recipe", "--train-steps", steps, "--logdir", logdir, "--batch-size", 10,
                  "--json", "--save-checkpoint-steps", 10, *more)  # fmt: skip


def goes_on(done, step=20):
    assert (done.code, done.json.get("global_step")) == (0, step), done.text
    assert "continues from step 10 " in done.text


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_that_was_copied_into_a_new_logdir_goes_on(tmp_path, way, capfd):
    assert trained(tmp_path, "first", 10, *WAYS["1 ps"]).code == 0
    copied = tmp_path / "second" / "checkpoints" / "step-00000010"
    shutil.copytree(tmp_path / "first" / "checkpoints" / "step-00000010", copied)

    goes_on(trained(tmp_path, "second", 20, *WAYS[way]))
    audited = here(capfd, "audit", tmp_path / "second")
    assert "ledger not complete: no violation in what is there" in audited.text
    assert "the ledger begins at step 10" in audited.text


@pytest.mark.slow
def test_a_damaged_file_of_grants_is_mended_as_its_error_says(tmp_path, capfd):
    assert trained(tmp_path, "run", 10, *WAYS["2 ps"]).code == 0
    grants = tmp_path / "run" / "checkpoints" / "grants.json"
    grants.write_bytes(grants.read_bytes()[:-1])

    refused = trained(tmp_path, "run", 20, *WAYS["2 ps"])
    assert refused.code == 1
    assert "grants.json is damaged" in refused.text
    assert "fix: remove it if no task is running" in refused.text
    grants.unlink()
    goes_on(trained(tmp_path, "run", 20, *WAYS["2 ps"]))
    audited = here(capfd, "audit", tmp_path / "run")
    assert audited.code == 0, audited.text


@pytest.mark.slow
@pytest.mark.parametrize("way", ["one process", "1 ps"])
def test_a_logdir_that_is_deleted_while_training_is_made_again_and_that_is_told_once(tmp_path, way, capfd):
    text = RECIPE.replace("class Gate(", f"{DELETING}\n\nclass Gate(", 1)
    (tmp_path / "small.py").write_text(text.replace("    hooks = [", "    hooks = [Delete()] + [", 1))
    done = evener(tmp_path, "train", "small.py:recipe", "--train-steps", 40, "--logdir", "run", "--batch-size", 10,
                  "--save-checkpoint-steps", 10, "--json", *WAYS[way])  # fmt: skip

    assert (done.code, done.json.get("global_step")) == (0, 40), done.text
    assert done.text.count("checkpoints was deleted, with what was in it; it is made again") == 1, done.text
    assert done.text.count("ledger.jsonl was deleted; it begins again at step ") == 1, done.text
    assert (tmp_path / "run" / "checkpoints" / "step-00000040" / "manifest.json").exists()
    audited = here(capfd, "audit", tmp_path / "run")
    assert "ledger not complete: no violation in what is there" in audited.text, audited.text
