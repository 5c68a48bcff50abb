"""One evener task of the benchmark: as `evener task mnist`, but ps:0 also says how fast the run was.

    python evener_task.py JOB INDEX PS_HOSTS WORKER_HOSTS LOGDIR --hidden H --steps N --warm-up N [--keys DIR]

It says "go" when it begins to count. Plain SGD: no L2 loss and no moving average, as the peers have none.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from evener.cluster.environment import Flags, find
from evener.report import AnyReport, Finished, Progress
from evener.settings import Settings
from evener.task.member import run_member, settings_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for word in ("job", "index", "ps", "workers", "logdir"):
        parser.add_argument(word)
    for name in ("--hidden", "--steps", "--warm-up"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--keys", default="")
    parser.add_argument("--mode", default="async")
    args = parser.parse_args()
    (Path(args.logdir) / "logs").mkdir(parents=True, exist_ok=True)
    found = find(Flags(job_name=args.job, task_index=int(args.index), ps_hosts=args.ps, worker_hosts=args.workers))
    settings = Settings(
        recipe="mnist", recipe_options={"hidden": args.hidden, "learning_rate": 0.1, "l2": 0.0, "ema_decay": 0.0},
        mode=args.mode, train_steps=args.steps, batch_size=100, logdir=args.logdir, save_checkpoint_secs=None,
    )  # fmt: skip
    marks: list[tuple[float, int]] = []  # the last may be a fifth of a second before the last step

    def hear(report: AnyReport) -> None:
        if isinstance(report, Progress) and report.updates >= args.warm_up:
            if not marks:
                print("go", flush=True)
            if not marks or report.updates > marks[-1][1]:  # after the last step come evaluation and checkpoint
                marks.append((time.monotonic(), report.updates))
        if isinstance(report, Finished):
            say(marks)

    run_member(found, replace(settings_for(found.cluster, settings), keys=args.keys, insecure=not args.keys), hear)


def say(marks: list[tuple[float, int]]) -> None:
    (since, first), (until, last) = marks[0], marks[-1]
    print(json.dumps({"rate": (last - first) / (until - since), "count": last - first}), flush=True)


if __name__ == "__main__":
    main()
