"""The example runs on any machine, and shows what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[2] / "examples" / "device_placement.py"


def test_two_modules_are_placed_logged_and_trained(tmp_path):
    run = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )  # fmt: skip

    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^features\.0 \(Linear\) +392,500 +1\.6 MB  (cpu \(wanted cuda:0\)|cuda:0)$", run.stdout, re.M)
    assert re.search(r"^classifier \(Linear\) +5,010 +20\.0 kB  (cpu \(wanted cuda:1\)|cuda:1)$", run.stdout, re.M)
    assert "output: [2, 10] on " in run.stdout
    assert "trained 50 steps, loss " in run.stdout
