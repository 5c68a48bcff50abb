"""`benchmarks/many.py` with as many workers as a suite can carry; it is given two hundred by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_crowd_of_workers_on_two_ps_loses_nothing_though_some_are_killed(mode, capsys):
    from many import Asked, played

    assert played(mode, Asked(workers=24, steps=3000, kills=2))
    assert "2 killed, exit code 0" in capsys.readouterr().out
