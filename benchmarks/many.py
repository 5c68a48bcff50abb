"""A run of very many workers, some of which are killed: does it begin, lose nothing, and end?

    python benchmarks/many.py                               # 200 workers on 2 ps, async and sync, 20 killed: 4 minutes
    python benchmarks/many.py --workers 24 --steps 800 --kills 2 --only async

Every worker is a process of evener with a model of 14 parameters, so that two cores carry them all: what is tried is
the servers, the launcher and the account. 200 of them take 8 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "system"))

from running import EVENER, Run, evener  # noqa: E402 - they are tools of the tests

#: Seconds for a whole run, and between two looks.
LONGEST, LOOK = 900.0, 0.1
RECIPE = """
import torch
from torch import nn

import evener


def data():
    inputs = torch.randn(4000, 6, generator=torch.Generator().manual_seed(1))
    target = (inputs[:, :3].sum(1) > 0).long()
    return (inputs, target), (inputs[:400], target[:400])


def recipe() -> evener.Recipe:
    return evener.Recipe(
        model=lambda: nn.Linear(6, 2), data=data, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1)
    )
"""


@dataclass(frozen=True, slots=True)
class Asked:
    workers: int
    steps: int  # gradients in all
    kills: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20_000, help="gradients in all; sync makes one step of N")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=["async", "sync"])
    given = parser.parse_args()
    asked = Asked(given.workers, given.steps, given.kills)
    print(f"{asked.workers} workers on 2 ps, {asked.steps:,} gradients, {asked.kills} workers killed", flush=True)
    right = [played(mode, asked) for mode in ("async", "sync") if given.only in (None, mode)]
    return 0 if all(right) else 1


def played(mode: str, asked: Asked) -> bool:
    """One run; prints what became of it. Returns whether its account is clean."""
    steps = asked.steps if mode == "async" else max(asked.steps // asked.workers, 1)
    words = ["train", "small.py:recipe", "--ps", 2, "--workers", asked.workers, "--mode", mode, "--batch-size", 10]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "small.py").write_text(RECIPE)
        began = time.monotonic()
        with Run([*EVENER, *words, "--train-steps", steps, "--logdir", "run", "--threads", 1], place) as run:
            run.wait_for(r"global step [1-9]", LONGEST)
            trains = time.monotonic() - began
            due = [steps * number // (asked.kills + 2) for number in range(1, asked.kills + 1)]
            killed = sum(1 for _ in kills(run, place / "run" / "ledger.jsonl", due))
            run.wait_for("reached step", LONGEST)
            done = run.finish(LONGEST)
        seconds = time.monotonic() - began
        audit = evener(place, "audit", "run")
    speed = re.search(r"speed +([\d,.]+) steps/s", done.text)
    print(
        f"{mode:6} trains after {trains:.0f} s, over after {seconds:.0f} s, "
        f"{speed.group(1) if speed else '?'} steps/s at the end, {killed} killed, exit code {done.code}"
    )
    print(f"       audit: {'; '.join(audit.text.strip().splitlines())}", flush=True)
    return done.code == 0 and audit.code == 0


def kills(run: Run, ledger: Path, due: list[int]) -> Iterator[int]:
    """Kill a worker when so many updates are in the ledger; yields its pid."""
    random = Random(1)
    for updates in due:
        while run.process.poll() is None and ledger.read_bytes().count(b'["u"') < updates:
            time.sleep(LOOK)
        workers = [task for task in psutil.Process(run.process.pid).children(recursive=True) if is_worker(task)]
        if not workers or run.process.poll() is not None:
            return
        task = random.choice(workers)
        with contextlib.suppress(psutil.NoSuchProcess):
            task.kill()
            yield task.pid


def is_worker(task: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(task.cmdline()).startswith("evener worker")
    return False


if __name__ == "__main__":
    sys.exit(main())
