"""A run whose output nobody reads trains to its end, and ends."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess

import pytest
from running import EVENER, RECIPE

WAYS = {"one process": (), "ps": ("--ps", 1, "--workers", 2)}
#: The run's last words wait for 10 s, and the machine may be busy.
PATIENCE = 110.0


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("way", WAYS)
def test_a_pipe_that_nobody_reads_stops_no_training(tmp_path, way):
    """One page fits into the pipe; the run has some hundred lines to say, and its recipe prints too."""
    (tmp_path / "small.py").write_text(
        RECIPE.replace("def model(hidden):", "def model(hidden):\n    print(('x' * 99 + chr(10)) * 1000)")
    )
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    words = [*EVENER, "train", "small.py:recipe", "--train-steps", 300, "--log-every", 1, "--logdir", "run", *WAYS[way]]
    with subprocess.Popen(
        [str(word) for word in words], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer
    ) as process:
        os.close(writer)
        try:
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            os.close(reader)
    (last,) = [line for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines() if line.startswith('["e"')]
    assert json.loads(last)[1] == 300
