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
    commands = [line.removeprefix("$ evener ") for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 6

    said = [evener(tmp_path, *shlex.split(command)) for command in commands]

    for command, done in zip(commands, said, strict=True):
        assert done.code == 0, f"{command}\n{done.text}"
    assert "the best model so far is kept: validation_noisy_accuracy" in said[0].out
    assert re.search(r"validation_clean_accuracy +(0\.9|1\.0)", said[3].out), said[3].out
    assert "base_lrs" not in said[5].out
    assert re.search(r"total_steps of the schedule is 200 as asked now, not 160 as in the checkpoint", said[5].out)
