"""What large models cost: CPU time of a step beside its bytes, and by how much a checkpoint delays training.

    python benchmarks/large.py bytes                    # 1 ps + 1 worker, 1.6 to 392 MB
    python benchmarks/large.py delay --width 2345       # 11 M parameters; 5000: 50 M
    python benchmarks/large.py delay --width 2345 --only towers

The model is that of `memory_model.py`. A hook of the chief reads the clock after each step, and the CPU time of all
tasks at both ends of its window. `delay` runs each way in pairs, one run with a checkpoint in the window and one
without, in turns; CPU time tells on a busy machine what the clock does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory_model import recipe as plain_recipe

import evener

HERE = Path(__file__)
#: Steps before the window: pages are fresh, and values are looked at.
BEFORE = 10
TICKS = os.sysconf("SC_CLK_TCK")
WAYS = {
    "alone": (),
    "1 ps + 2 async": ("--ps", "1", "--workers", "2", "--mode", "async"),
    "towers 2": ("--towers", "2"),
}
SIZES = (450, 2345, 5000, 7000)


def cpu_of_tasks() -> dict[str, float]:
    """Seconds of CPU that each task of this run has had, by name."""
    found, alone = {}, os.getpid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                numbers = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes().decode().split()
            except OSError:
                continue
            name = next((word.rstrip("\0") for word in words if word.startswith(("ps:", "worker:"))), "")
            if int(entry.name) == alone or (name and int(numbers[1]) == os.getppid()):
                found[name or "alone"] = (int(numbers[11]) + int(numbers[12])) / TICKS
    return found


class Watch(evener.Hook):
    """Writes down when each step of the chief was done, and the CPU time of all tasks in the window."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._times: list[float] = []
        self._steps: list[int] = []
        self._cpu: dict[str, float] = {}

    def after_step(self, session: Any, result: Any) -> None:
        if result.chief and result.global_step >= BEFORE:
            self._times.append(time.monotonic())
            self._steps.append(result.global_step)
            self._cpu = self._cpu or cpu_of_tasks()

    def end(self, session: Any) -> None:
        if not self._times:
            return
        now = cpu_of_tasks()
        cpu = {name: now[name] - before for name, before in self._cpu.items() if name in now}
        Path(self._place).write_text(json.dumps({"times": self._times, "steps": self._steps, "cpu": cpu}))


def recipe(width: int, place: str) -> evener.Recipe:
    return dataclasses.replace(plain_recipe(width), hooks=lambda: [Watch(place)])


def run(words: tuple[str, ...], width: int, steps: int, batch: int, every: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        place = f"{directory}/figures"
        command = [
            sys.executable, "-m", "evener", "train", f"{HERE}:recipe", "--set", f"width={width}",
            "--set", f"place={place}", "--train-steps", str(steps), "--batch-size", str(batch), "--quiet",
            "--logdir", f"{directory}/run", "--save-checkpoint-secs", "100000", "--save-checkpoint-steps", str(every),
            *words,
        ]  # fmt: skip
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found = json.loads(Path(place).read_text())
    updates = found["steps"][-1] - found["steps"][0]
    gaps = [after - before for before, after in zip(found["times"], found["times"][1:], strict=False)]
    return {
        "wall": (found["times"][-1] - found["times"][0]) / updates, "updates": updates,
        "cpu": {name: seconds / updates for name, seconds in found["cpu"].items()},
        "longest": max(gaps), "usual": statistics.median(gaps),
    }  # fmt: skip


def by_bytes(only: str) -> None:
    words = ("--ps", "1", "--workers", "1", "--mode", "async")
    for width in SIZES:
        if only not in str(width):
            continue
        nbytes = (2 * width**2 + 2 * width) * 4 / 1e6
        found = run(words, width, BEFORE + max(12, round(2000 / nbytes)), 4, 10**6)
        cpu = {name: 1e3 * seconds for name, seconds in sorted(found["cpu"].items())}
        told = ", ".join(f"{name} {each:.2f} ms = {each / nbytes:.3f} a MB" for name, each in cpu.items())
        print(f"{nbytes:.1f} MB: {told}; clock {1e3 * found['wall']:.1f} ms", flush=True)


def delay(width: int, pairs: int, steps: int, only: str) -> None:
    for way, words in WAYS.items():
        if only not in way:
            continue
        told: dict[str, list[float]] = {"time": [], "CPU": [], "longest": []}
        for _ in range(pairs):
            without, saving = (run(words, width, steps, 16, every) for every in (10**6, (BEFORE + steps) // 2))
            for what, figures in (("time", [one["wall"] for one in (without, saving)]),
                                  ("CPU", [sum(one["cpu"].values()) for one in (without, saving)])):  # fmt: skip
                told[what].append((figures[1] / figures[0] - 1) * saving["updates"] / 100)
            told["longest"].append(saving["longest"] / saving["usual"])
            print(f"  {way}: an update {1e3 * without['wall']:.0f} ms, {1e3 * saving['wall']:.0f} with a checkpoint in "
                  f"{saving['updates']}; longest step of the chief {without['longest']:.2f} s, {saving['longest']:.2f} "
                  f"with, median {saving['usual']:.2f}; load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
        each = {what: ", ".join(f"{one:.1%}" for one in sorted(told[what])) for what in ("time", "CPU")}
        print(f"{way}, width {width}: a checkpoint every 100 updates takes {each['time']} of the time, "
              f"{each['CPU']} of the CPU; longest step {statistics.median(told['longest']):.1f} medians",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bytes", "delay"))
    parser.add_argument("--width", type=int, default=2345)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", default="", help="what stands in the name of the way, or in the width")
    given = parser.parse_args()
    if given.what == "bytes":
        by_bytes(given.only)
    else:
        delay(given.width, given.pairs, given.steps, given.only)
