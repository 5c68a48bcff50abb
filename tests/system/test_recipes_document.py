"""What docs/recipes.md shows: its recipe, and each of its commands in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from running import evener

DOCUMENT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_recipe_and_the_commands_of_the_document_work(tmp_path):
    (tmp_path / "blobs.py").write_text(blocks("python")[0])
    commands = [line.removeprefix("$ evener ") for block in blocks("console") for line in block.splitlines()
                if "blobs.py" in line]  # fmt: skip
    assert len(commands) == 6

    said = [evener(tmp_path, *shlex.split(command)) for command in commands]

    for command, done in zip(commands, said, strict=True):
        assert done.code == 0, f"{command}\n{done.text}"
    assert "the best model so far is kept: validation_noisy_accuracy" in said[0].out
    assert re.search(r"validation_clean_accuracy +(0\.9|1\.0)", said[3].out), said[3].out
    assert "base_lrs" not in said[5].out
    assert re.search(r"total_steps of the schedule is 200 as asked now, not 160 as in the checkpoint", said[5].out)


@pytest.mark.slow
def test_its_loader_step_and_optimizers_work_with_the_documents_commands(tmp_path):
    (tmp_path / "words.py").write_text(blocks("python")[1])
    commands = [line.removeprefix("$ evener ") for block in blocks("console") for line in block.splitlines()
                if "words.py" in line]  # fmt: skip
    assert len(commands) == 2

    for command in commands:
        done = evener(tmp_path, *shlex.split(command))
        assert done.code == 0, f"{command}\n{done.text}"
        assert re.search(r"validation accuracy +(0\.9|1\.0)", done.out), done.out
    audit = evener(tmp_path, "audit", "runs/words")
    assert "228 batches applied; 6 whole epochs of 38: each batch exactly once" in audit.out
    assert "ledger clean" in audit.out
