"""How much memory each way of training a large model takes, beside what the work needs.

    python benchmarks/memory.py                          # 98 M parameters, all ways, one after the other
    python benchmarks/memory.py --width 5000 --only ps   # half of it, the ways in whose names this stands
    python benchmarks/memory.py --optimizer adam --ema 0.99 --transport tcp --resumed

The figure of a task is the peak of its proportional share (PSS): what processes share is counted once. It is read 20
times a second, of every process of the run. Allowed, with P bytes of parameters and B = 0.4 GB for Python and PyTorch:
one that holds all parameters 2 P, and a copy of P while it saves; a ps the same, and P for each gradient in flight; a
worker P, and P for each of its gradients in flight. Where something is kept of each parameter (momentum 1, Adam 2,
averages 1), one that holds all takes P more for each, and its copy too.

With `--resumed` the run that is measured goes on from the checkpoint of another. Behind each figure stands what it is
made of: memory of the process's own (anon), what it shares (shmem), and files.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODEL = Path(__file__).with_name("memory_model.py")
BASE, GB = 0.4, 1e9
#: Seconds after which a run is given up.
LONGEST = 600.0
LAUNCHER = "the process"


@dataclass(frozen=True)
class Way:
    """One way of training, and what it is allowed: of P, for its largest worker, its ps, and all of it."""

    name: str
    words: tuple[str, ...]
    worker: float
    ps: float = 0.0
    own: bool = False

    def command(self, work: Work, steps: int, place: Path) -> list[str]:
        loop = [str(MODEL), str(work.width), str(steps), "--optimizer", work.optimizer]
        if not self.name.startswith("evener"):
            return [sys.executable, *loop, "--keep", str(place)]
        shared = [*self.words, "--logdir", str(place / "run"), "--save-checkpoint-steps", str(work.steps // 2),
                  "--save-checkpoint-secs", "100000", "--quiet"]  # fmt: skip
        shared += ["--transport", work.transport] if self.ps else []
        evener = [sys.executable, "-m", "evener"]
        if self.own:
            return [*evener, "launch", *shared, *loop]
        recipe = {"width": work.width, "optimizer": work.optimizer, "ema": work.ema}
        sets = [word for item in recipe.items() for word in ("--set", "{}={}".format(*item))]
        return [*evener, "train", f"{MODEL}:recipe", *sets, "--train-steps", str(steps), "--batch-size", "4", *shared]

    def allowed(self, task: str, work: Work) -> float:
        """Of P, by this task."""
        kept = KEPT[work.optimizer] + (work.ema > 0 and not self.own)
        if task.startswith("ps:"):
            return self.ps + 2 * kept
        if self.ps or not self.name.startswith("evener"):
            return self.worker + (0 if self.ps else kept)
        return self.worker + 2 * kept


@dataclass(frozen=True)
class Work:
    """What is trained, and how."""

    width: int
    steps: int
    optimizer: str
    ema: float
    transport: str
    resumed: bool

    @property
    def size(self) -> float:
        """P, in GB."""
        return (2 * self.width**2 + 2 * self.width) * 4 / GB


#: Numbers that an optimizer keeps of each parameter.
KEPT = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2, "fused": 2}
ONE, TWO = ("--ps", "1", "--workers", "1"), ("--ps", "1", "--workers", "2")
WAYS = (
    Way("plain PyTorch", (), 2),
    Way("evener train", (), 3),
    Way("evener train --ps 1 --workers 1", ONE, 2, 4),
    Way("evener train --ps 1 --workers 1 --in-flight 2", (*ONE, "--mode", "async", "--in-flight", "2"), 3, 5),
    Way("evener train --ps 1 --workers 2 async", (*TWO, "--mode", "async"), 2, 5),
    Way("evener train --ps 1 --workers 2 sync", (*TWO, "--mode", "sync"), 2, 5),
    Way("evener train --towers 2", ("--towers", "2"), 3),
    Way("evener launch", (), 3, own=True),
    Way("evener launch --ps 1 --workers 1", ONE, 2, 4, own=True),
    Way("evener launch --ps 1 --workers 2 async", (*TWO, "--mode", "async"), 2, 5, own=True),
    Way("evener launch --towers 2", ("--towers", "2"), 3, own=True),
)


@dataclass(frozen=True)
class Share:
    """Of one process: what it is called, and its PSS in bytes, in all and by kind of mapping."""

    name: str
    nbytes: int = 0
    kinds: str = ""


@dataclass
class Peaks:
    """Of a run: bytes of all at once, and each task when it had most."""

    total: int = 0
    tasks: dict[str, Share] = field(default_factory=dict)

    def see(self, shares: Sequence[Share]) -> None:
        for share in shares:
            if share.nbytes > self.tasks.get(share.name, Share("")).nbytes:
                self.tasks[share.name] = share
        self.total = max(self.total, sum(share.nbytes for share in shares))


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


def share_of(pid: int) -> Share:
    """Raises OSError when it is gone."""
    place = Path(f"/proc/{pid}")
    words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    name = next((word.rstrip(",;") for word in words if word.startswith(("worker:", "ps:"))), LAUNCHER)
    if "fork" in " ".join(words):
        name = "fork server"
    lines = (line.split() for line in (place / "smaps_rollup").read_text().splitlines()[1:])
    kinds = {words[0]: int(words[1]) * 1024 for words in lines}
    told = [f"{kind} {kinds.get(f'Pss_{kind.capitalize()}:', 0) / GB:.2f}" for kind in ("anon", "shmem", "file")]
    return Share(name, kinds.get("Pss:", 0), ", ".join(told))


def watched(command: Sequence[str], place: Path, source: Path) -> Peaks:
    """Run a command to its end."""
    peaks, began = Peaks(), time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    with (place / "output").open("wb") as output:
        run = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        while run.poll() is None and time.monotonic() - began < LONGEST:
            shares = []
            for pid in tree(run.pid):
                with contextlib.suppress(OSError):
                    shares.append(share_of(pid))
            peaks.see(shares)
            time.sleep(0.05)
        if run.poll() is None:
            run.send_signal(signal.SIGTERM)
            run.wait(60)
    if run.returncode:
        print((place / "output").read_text()[-2000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
    return peaks


def measure(way: Way, work: Work, source: Path) -> Peaks:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        peaks = watched(way.command(work, work.steps, place), place, source)
        if work.resumed:
            peaks = watched(way.command(work, 2 * work.steps, place), place, source)
        return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=7000)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--only", default="", help="what stands in the names of the ways to run")
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="another checkout's src")
    parser.add_argument("--optimizer", choices=KEPT, default="sgd")
    parser.add_argument("--ema", type=float, default=0.0, help="recipes only")
    parser.add_argument("--transport", default="auto")
    parser.add_argument("--resumed", action="store_true")
    given = parser.parse_args()
    work = Work(given.width, given.steps, given.optimizer, given.ema, given.transport, given.resumed)
    print(f"P = {work.size:.3f} GB; peaks of PSS in GB (as many P beside {BASE} GB a task), allowed in brackets")
    for way in WAYS:
        if given.only not in way.name:
            continue
        peaks = measure(way, work, given.source.resolve())
        print(f"{way.name}: {peaks.total / GB:.2f} in sum")
        trains = [name for name in peaks.tasks if name.startswith(("ps:", "worker:"))] or [LAUNCHER]
        for name in sorted(trains):
            share = peaks.tasks[name]
            peak, allowed = share.nbytes / GB, way.allowed(name, work)
            found = f"{peak:.2f} = {max(0.0, peak - BASE) / work.size:.1f} P + {BASE}"
            print(f"    {name}: {found} ({allowed * work.size + BASE:.2f} = {allowed:g} P); {share.kinds}", flush=True)


if __name__ == "__main__":
    main()
