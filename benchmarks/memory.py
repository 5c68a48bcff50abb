"""How much memory each way of training a large model takes, beside what the work needs.

    python benchmarks/memory.py                          # 98 M parameters, all ways, one after the other
    python benchmarks/memory.py --width 3500 --only ps   # a quarter of it, the ways whose names begin so

The figure of a task is the peak of its proportional share (PSS): what processes share is counted once. It is read 20
times a second, of every process of the run. Allowed, with P bytes of parameters and B = 0.4 GB for Python and PyTorch:
one that holds all parameters 2 P, and a copy of P while it saves; a ps the same, and P for each gradient in flight; a
worker P, and its gradient. Another P for each number that the optimizer keeps of a parameter: SGD keeps none.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODEL = Path(__file__).with_name("memory_model.py")
BASE, GB = 0.4, 1e9
#: Seconds after which a run is given up.
LONGEST = 600.0


@dataclass(frozen=True)
class Way:
    """One way of training, and what it is allowed: of P, for its largest worker, its ps, and all of it."""

    name: str
    words: tuple[str, ...]
    worker: float
    ps: float = 0.0
    workers: int = 1
    own: bool = False

    def command(self, width: int, steps: int, place: Path) -> list[str]:
        if not self.name.startswith("evener"):
            return [sys.executable, str(MODEL), str(width), str(steps), str(place)]
        shared = [*self.words, "--logdir", str(place / "run"), "--save-checkpoint-steps", str(steps // 2),
                  "--save-checkpoint-secs", "100000", "--quiet"]  # fmt: skip
        evener = [sys.executable, "-m", "evener"]
        if self.own:
            return [*evener, "launch", *shared, str(MODEL), str(width), str(steps)]
        return [*evener, "train", f"{MODEL}:recipe", "--set", f"width={width}", "--train-steps", str(steps),
                "--batch-size", "4", *shared]  # fmt: skip


PS, ASYNC, SYNC = ("--ps", "1", "--workers", "1"), ("--mode", "async"), ("--mode", "sync")
TWO = ("--ps", "1", "--workers", "2")
WAYS = (
    Way("plain PyTorch", (), 2),
    Way("evener train", (), 3),
    Way("evener train --ps 1 --workers 1", PS, 2, 4),
    Way("evener train --ps 1 --workers 2 async", (*TWO, *ASYNC), 2, 5, 2),
    Way("evener train --ps 1 --workers 2 sync", (*TWO, *SYNC), 2, 5, 2),
    Way("evener train --towers 2", ("--towers", "2"), 3, workers=2),
    Way("evener launch", (), 3, own=True),
    Way("evener launch --ps 1 --workers 1", PS, 2, 4, own=True),
)


@dataclass
class Peaks:
    """Bytes."""

    total: int = 0
    tasks: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def see(self, shares: dict[int, tuple[str, int]]) -> None:
        now: dict[str, int] = defaultdict(int)
        for name, share in shares.values():
            now[name] = max(now[name], share)
        for name, share in now.items():
            self.tasks[name] = max(self.tasks[name], share)
        self.total = max(self.total, sum(share for _, share in shares.values()))


def tree(root: int) -> Iterator[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children[pid]


def share_of(pid: int) -> tuple[str, int]:
    """What it is called, and its PSS in bytes. Raises OSError when it is gone."""
    place = Path(f"/proc/{pid}")
    words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    name = next(
        (word.rstrip(",;") for word in words if word.startswith(("worker:", "ps:"))), "launcher, alone or plain"
    )
    if "fork" in " ".join(words):
        name = "fork server"
    for line in (place / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return name, int(line.split()[1]) * 1024
    return name, 0


def measure(way: Way, width: int, steps: int, source: Path) -> tuple[Peaks, float]:
    with tempfile.TemporaryDirectory() as directory:
        place, peaks, began = Path(directory), Peaks(), time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        with (place / "output").open("wb") as output:
            run = subprocess.Popen(way.command(width, steps, place), env=environment, stdout=output, stderr=output,
                                   stdin=subprocess.DEVNULL)  # fmt: skip
            while run.poll() is None and time.monotonic() - began < LONGEST:
                shares = {}
                for pid in tree(run.pid):
                    try:
                        shares[pid] = share_of(pid)
                    except OSError:
                        continue
                peaks.see(shares)
                time.sleep(0.05)
            if run.poll() is None:
                run.send_signal(signal.SIGTERM)
                run.wait(60)
        if run.returncode:
            print((place / "output").read_text()[-2000:], file=sys.stderr)
            raise SystemExit(f"{way.name} ended with {run.returncode}")
        return peaks, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=7000)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--only", default="", help="what stands in the names of the ways to run")
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="another checkout's src")
    options = parser.parse_args()
    size = (2 * options.width**2 + 2 * options.width) * 4 / GB
    print(f"P = {size:.3f} GB; peaks of PSS in GB (as many P beside {BASE} GB a task), allowed in brackets")
    for way in WAYS:
        if options.only not in way.name:
            continue
        peaks, seconds = measure(way, options.width, options.steps, options.source.resolve())
        print(f"{way.name}: {peaks.total / GB:.2f} in sum, {seconds:.0f} s")
        for name, peak in sorted(peaks.tasks.items()):
            allowed = way.ps if name.startswith("ps:") else way.worker
            if name.startswith(("ps:", "worker:")) or not (
                way.ps or way.workers > 1 or (way.own and len(peaks.tasks) > 2)
            ):
                print(f"    {name}: {peak / GB:.2f} = {max(0.0, peak / GB - BASE) / size:.1f} P + {BASE}"
                      f" ({allowed * size + BASE:.2f} = {allowed:g} P + {BASE})", flush=True)  # fmt: skip
            else:
                print(f"    {name}: {peak / GB:.2f}", flush=True)


if __name__ == "__main__":
    main()
