"""docs/accelerate.md: its programs, as they stand there, alone, with ps tasks and as towers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from running import EVENER, PATIENCE, Run, evener

pytestmark = pytest.mark.slow
TEXT = (Path(__file__).parents[2] / "docs" / "accelerate.md").read_text()
NAMES, CODES = re.findall(r"`(with_\w+\.py)`:", TEXT), re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PROGRAMS = dict(zip(NAMES, CODES, strict=True))
COMMANDS = re.findall(r"^\$ (.*)", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_program_of_the_document_trains(command, tmp_path):
    first, *words = command.split()
    (tmp_path / words[-1]).write_text(PROGRAMS[words[-1]])
    launched = first == "evener"
    started = [*EVENER, words[0], "--logdir", "run", *words[1:]] if launched else [sys.executable, *words]
    with Run(started, tmp_path, HF_HUB_OFFLINE="1") as run:
        done = run.finish(2 * PATIENCE)

    assert done.code == 0 and "warning: " not in done.text, done.text
    assert all(value.isfinite().all() for value in torch.load(tmp_path / "model.pt").values())
    if "accelerate" in words[-1]:
        assert float(re.findall(r"accuracy (\d\.\d+)", done.text)[-1]) > 0.85, done.text
    else:
        losses = [float(loss) for loss in re.findall(r"'loss': '(\d\.\d+)'", done.text)]
        assert losses[-1] < 0.8 * losses[0], done.text
    if launched:
        account = evener(tmp_path, "audit", "run", "--json").json
        assert (account["clean"], account["epochs"]) == (True, 3)
