"""How long nobody trains after a `kill -9`: seconds from the signal to the next line about training.

    python benchmarks/recovery.py [--repeats 5] [--against OTHER/src]

Each repeat starts every run anew and kills one task of it after some hundred steps; with --against, by the code of this
checkout and of another one in turn. The lines come every 10 steps; a worker's end is counted to its own next line, for
the others do not stop. Read the figures as ratios of one run: they depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "system"))

from running import EVENER, Run  # noqa: E402 - it is a tool of the tests

#: (tasks of the run, who is killed)
FAULTS = [
    (("--ps", "1", "--workers", "2"), "worker:1"),
    (("--ps", "1", "--workers", "2"), "ps:0"),
    (("--ps", "2", "--workers", "2"), "ps:0"),
    (("--ps", "2", "--workers", "2"), "ps:1"),
    (("--ps", "2", "--workers", "2", "--transport", "tcp"), "ps:1"),
]
TRAIN = ("train", "mnist", "--train-steps", "1000000", "--log-every", "10", "--save-checkpoint-steps", "100")


def seconds_without(source: Path, tasks: tuple[str, ...], victim: str, place: Path) -> float:
    """Of one run by the code in `source`, killed in the end."""
    with Run([*EVENER, *TRAIN, *tasks, "--logdir", "run"], place, PYTHONPATH=str(source)) as run:
        run.wait_for(r"global step [3-9]\d\d", 120.0)
        run.wait_for(r"worker:1 +global step", 60.0)
        killed = run.task(victim)
        began = time.monotonic()
        killed.kill()
        back = r"continues from step \d+" if victim.startswith("ps") else rf"{victim} +was killed"
        who = victim if victim.startswith("worker") else r"worker:\d"
        run.wait_for(rf"{back}[\s\S]*{who} +global step", 120.0)
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, help="the directory src of another checkout")
    options = parser.parse_args()
    sources = [ROOT / "src", *([options.against.resolve()] if options.against else [])]
    took: dict[tuple[int, Path], list[float]] = {}
    for repeat in range(options.repeats):
        for number, (tasks, victim) in enumerate(FAULTS):
            for source in sources if repeat % 2 else reversed(sources):
                with tempfile.TemporaryDirectory() as place:
                    seconds = seconds_without(source, tasks, victim, Path(place))
                took.setdefault((number, source), []).append(seconds)
    for number, (tasks, victim) in enumerate(FAULTS):
        for source in sources:
            times = took[number, source]
            print(
                f"{' '.join(tasks)}, {victim} killed, {os.path.relpath(source)}: "
                f"median {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
            )


if __name__ == "__main__":
    main()
