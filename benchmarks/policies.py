"""What a policy costs: microseconds an event, for every mode, with 100 and with 16,000 workers.

    python benchmarks/policies.py
    python benchmarks/policies.py --json

Workers push in turns, a seeded shuffle of them; the figure is the median of five rounds. It should stay flat.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time

from evener.modes import MODES, Mode, Quorum, Sync
from evener.policy.events import Joined, Pushed, Release

CROWDS, PUSHES, ROUNDS = (100, 16_000), 40_000, 5


def microseconds(mode: Mode, workers: int, seed: int) -> float:
    """Of one event, in the mean."""
    policy, chance = mode.start(0, workers), random.Random(seed)
    at: dict[int, int] = {}
    for worker in range(workers):
        for decision in policy.on(Joined(worker)):
            if isinstance(decision, Release):
                at[decision.worker] = policy.version
    spent, handle = 0, 0
    while handle < PUSHES:
        able = list(at)
        chance.shuffle(able)
        for worker in able:
            if worker not in at:
                continue
            event, handle = Pushed(worker, at.pop(worker), handle), handle + 1
            since = time.perf_counter_ns()
            decisions = policy.on(event)
            spent += time.perf_counter_ns() - since
            for decision in decisions:
                if isinstance(decision, Release):
                    at[decision.worker] = policy.version
    return spent / handle / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    modes: dict[str, Mode] = {name: mode() for name, mode in MODES.items()}
    modes["sync, a tenth are backups"] = Sync()
    found: dict[str, dict[int, float]] = {}
    for name, usual in modes.items():
        for crowd in CROWDS:
            mode = usual
            if name.startswith("sync,"):
                mode = Sync(replicas_to_aggregate=crowd * 9 // 10)
            elif name == "quorum":
                mode = Quorum(quorum=crowd * 9 // 10)
            values = [microseconds(mode, crowd, seed) for seed in range(ROUNDS)]
            found.setdefault(name, {})[crowd] = statistics.median(values)
        few, many = (found[name][crowd] for crowd in CROWDS)
        print(
            f"{name:28s} {few:5.2f} us with {CROWDS[0]}, {many:5.2f} us with {CROWDS[1]}: {many / few:4.2f} x",
            flush=True,
        )
    if args.json:
        json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
