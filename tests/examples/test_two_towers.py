"""The example runs on any machine, and shows what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "two_towers.py"


def test_two_towers_learn_what_one_process_learns_at_twice_the_batch(tmp_path):
    run = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
    )

    assert run.returncode == 0, run.stdout + run.stderr
    two, one = re.findall(r"^.* at \d+: 100 updates of 10000 examples, (0\.\d+) right$", run.stdout, re.MULTILINE)
    assert two == one and float(two) > 0.8
    assert float(re.search(r"differ by (\S+)$", run.stdout)[1]) < 2e-6
