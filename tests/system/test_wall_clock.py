"""P16: clocks on the wall jump (NTP, suspended laptops, somebody's `date`); nothing that is decided depends on them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from running import RECIPE, evener

import evener as package

SRC = Path(package.__file__).parent

#: Where the time of day is written down, for people, and nothing is decided by it.
STAMPS = {"task/build.py"}

#: Every task of a run imports this first: its time of day jumps an hour ahead and back at each look.
JUMPS = """
import itertools
import time

real, hours = time.time, itertools.cycle([3600.0, -3600.0, 0.0])
time.time = lambda: real() + next(hours)
"""


def test_the_time_of_day_is_read_where_it_is_written_down_and_nowhere_else():
    readers = {
        str(file.relative_to(SRC))
        for file in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "datetime.now", "datetime.utcnow")
    }

    assert readers == STAMPS


@pytest.mark.slow
def test_a_run_whose_clocks_jump_an_hour_at_each_look_ends_as_any_other(tmp_path):
    (tmp_path / "small.py").write_text(RECIPE)
    (tmp_path / "jumps").mkdir()
    (tmp_path / "jumps" / "sitecustomize.py").write_text(JUMPS)
    done = evener(
        tmp_path, "train", "small.py:recipe", "--ps", 2, "--workers", 2, "--mode", "sync", "--train-steps", 60,
        "--save-checkpoint-secs", 0.2, "--stall-timeout", 60, "--logdir", "run", "--json",
        PYTHONPATH=f"{tmp_path / 'jumps'}:{SRC.parent}",
    )  # fmt: skip
    assert done.code == 0, done.text
    assert done.json["global_step"] == 60
    assert 0 < done.json["seconds"] < done.seconds
    audit = evener(tmp_path, "audit", "run")
    assert audit.code == 0, audit.text
