"""`--resume-step`: newer checkpoints are set aside, and nothing is deleted."""

from __future__ import annotations

import json

import pytest

import evener
from evener.errors import CheckpointError, ConfigError

OPTIONS = {"recipe_options": {"hidden": 8}, "batch_size": 20, "save_checkpoint_steps": 10, "quiet": True}


@pytest.fixture
def run(tmp_path):
    """Train in one process, in the same logdir each time."""

    def run(**options):
        return evener.run("mnist", logdir=str(tmp_path / "run"), **{**OPTIONS, **options})

    return run


def there(tmp_path):
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_run_goes_on_from_an_older_step_and_what_was_newer_is_kept_by_another_name(run, tmp_path):
    run(train_steps=30)
    run(train_steps=20, resume_step=10)
    names = there(tmp_path)
    assert "step-00000030.aside" in names and "step-00000030" not in names
    lines = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    begins = [line for line in map(json.loads, lines) if line[0] == "b"]
    assert [line[6] for line in begins] == [0, 10]
    run(train_steps=30, resume_step=20)
    assert {"step-00000020", "step-00000030", "step-00000030.aside"} <= set(there(tmp_path))
    from evener.commands.account import account

    assert account(tmp_path / "run").clean


@pytest.mark.slow
def test_a_step_that_is_not_there_or_not_whole_changes_nothing(run, tmp_path):
    run(train_steps=20)
    before = there(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such checkpoint") as refused:
        run(train_steps=30, resume_step=7)
    assert "10, 20" in refused.value.fix
    (tmp_path / "run" / "checkpoints" / "step-00000010" / "parameters-0.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        run(train_steps=30, resume_step=10)
    assert there(tmp_path) == before


def test_on_standing_servers_it_is_refused(tmp_path):
    from evener.cluster.cluster import ClusterSpec

    servers = ClusterSpec.of({"ps": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"]})
    with pytest.raises(ConfigError, match="--resume-step"):
        evener.run("mnist", existing_servers=servers, resume_step=1)
