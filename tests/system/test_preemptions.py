"""A run that is preempted again and again loses no sample, and docs/preemption.md, followed to the letter."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from running import EVENER, PATIENCE, Run, evener, until

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
TEXT = (ROOT / "docs" / "preemption.md").read_text()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("ps", [1, 2])
def test_five_preemptions_and_a_notice_lose_no_sample(ps, tmp_path):
    from preemptions import Plan, play

    strokes = ((100, "worker:0"), (200, "ps:0"), (300, ""), (400, "worker:2"), (500, f"ps:{ps - 1}"), (600, "worker:1"))
    played = play(tmp_path, Plan(strokes), ps=ps, steps=700, pause=5.0)

    assert not played.wrong
    assert (played.signals, played.notices, played.kept) == (5, 1, 700)
    assert played.goodput >= 0.95, "at most some gradients a preemption, which are computed again"


def test_the_same_preemptions_are_drawn_each_time_and_some_are_notices():
    from preemptions import Plan

    plan = Plan.drawn(50, 15300, 2, 1)
    assert plan == Plan.drawn(50, 15300, 2, 1) != Plan.drawn(50, 15300, 2, 2)
    assert {task for _, task in plan.strokes} == {"ps:0", "ps:1", "worker:0", "worker:1", "worker:2", ""}
    assert sum(not task for _, task in plan.strokes) == 3


def test_the_document_s_run_is_preempted_by_its_notice_and_goes_on(tmp_path):
    (block,) = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    train, notice = [shlex.split(line.removeprefix("$ ")) for line in block.splitlines()]
    command = [*EVENER, *train[1:]]
    with Run(command, tmp_path) as run:
        ledger = tmp_path / "runs" / "spot" / "ledger.jsonl"
        until(lambda: ledger.exists() and ledger.read_text().count('["u"') > 20, PATIENCE, "it trains")
        subprocess.run(notice, cwd=tmp_path, check=True)
        done = run.finish(PATIENCE)
    assert done.code == 4, done.text
    with Run(command, tmp_path) as run:
        done = run.finish(PATIENCE)
    assert done.code == 0 and "reached step 4000" in done.text, done.text
    assert evener(tmp_path, "audit", "runs/spot").code == 0
