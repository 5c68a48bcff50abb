"""A run whose tasks are preempted again and again: samples lost, and gradients that were computed for nothing.

    python benchmarks/preemptions.py                    # 50 preemptions with 1 and 2 ps tasks, and torchrun: 20 minutes
    python benchmarks/preemptions.py --preemptions 5 --steps 1500 --only ps1

A seeded choice of tasks gets SIGTERM, each at a drawn step; now and then the whole machine gives notice instead
(`--preemption-notice`), all leave, and the same command is started again. Every worker writes one byte for each batch
that it begins: goodput is gradients in the parameters in the end, of all that were begun. Beside it the same without
preemptions, and the same network in DistributedDataParallel under `torchrun --max-restarts 100`, with a checkpoint
every 100 steps and as many SIGTERMs, at steps drawn in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "system"))

from running import EVENER, Run, evener  # noqa: E402 - they are tools of the tests

WORKERS = 3
PEER = Path(__file__).parent / "peers" / "ddp_preempted.py"
#: Seconds for a whole run, and for what happens soon.
LONGEST, PATIENCE = 1200.0, 120.0
RECIPE = """
import os

import torch
from torch import nn

import evener


class Begun(evener.Hook):
    def begin(self, session):
        self.file = os.open(f"begun-{session.task}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def before_step(self, session):
        os.write(self.file, b".")


def data():
    inputs, labels = torch.randn(6000, 784), torch.randint(0, 10, (6000,))
    return (inputs, labels), (inputs[:100], labels[:100])


def recipe() -> evener.Recipe:
    return evener.Recipe(
        model=lambda: nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)), data=data, hooks=Begun,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )
"""


@dataclass(frozen=True, slots=True)
class Played:
    """What became of one run."""

    seconds: float
    computed: int  # gradients begun, of all workers
    kept: int  # in the parameters, in the end
    signals: int
    notices: int
    wrong: str = ""  # what the audit says; empty: every sample exactly once

    @property
    def goodput(self) -> float:
        return self.kept / self.computed


@dataclass(frozen=True, slots=True)
class Plan:
    """When which task is preempted: at a global step, "worker:1", or "" for a notice to all."""

    strokes: tuple[tuple[int, str], ...]

    @classmethod
    def drawn(cls, count: int, steps: int, ps: int, seed: int) -> Plan:
        random = Random(seed)
        tasks = [*(f"ps:{index}" for index in range(ps)), *(f"worker:{index}" for index in range(WORKERS))]
        notices = set(random.sample(range(count), count // 15 if ps else 0))
        marks = sorted(random.sample(range(1, steps), count))  # even ones would fall on torchrun's checkpoints
        return cls(tuple((at, "" if number in notices else random.choice(tasks)) for number, at in enumerate(marks)))


def until(ready: Callable[[], object], run: Run) -> bool:
    """Whether this came to be before the run ended."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if run.process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing moves:\n{run.said()}")
        time.sleep(0.01)
    return True


def reached(ledger: Path) -> int:
    """The newest update in a ledger; a roll-back is of no interest here."""
    with contextlib.suppress(OSError), ledger.open("rb") as file:
        file.seek(max(0, ledger.stat().st_size - 4000))
        for line in reversed(file.read().split(b"\n")[1:]):
            with contextlib.suppress(ValueError):
                words = json.loads(line)
                if words[0] == "u":
                    return int(words[1])
    return 0


def strike(run: Run, task: str) -> bool:
    """SIGTERM to a task that lives, once it does; False: the run ended first."""
    found: list[psutil.Process] = []

    def there() -> bool:
        with contextlib.suppress(AssertionError, psutil.Error):
            found[:] = [run.task(task)]
        return bool(found)

    if not until(there, run):
        return False
    found[0].send_signal(signal.SIGTERM)
    return until(lambda: not found[0].is_running() or found[0].status() == psutil.STATUS_ZOMBIE, run)


def play(place: Path, plan: Plan, *, ps: int, steps: int, pause: float) -> Played:
    """One run of evener, started again after each notice until it is over. Raises RuntimeError if it fails."""
    (place / "plain.py").write_text(RECIPE)
    slow = ",".join(f"worker:{worker}={pause:g}ms" for worker in range(WORKERS))
    command = [
        *EVENER, "train", "plain:recipe", "--ps", ps, "--workers", f"1..{WORKERS}", "--train-steps", steps,
        "--slow", slow, "--logdir", "run", "--preemption-notice", "notice", "--save-summary-secs", 1000,
    ]  # fmt: skip
    began, left, signals, notices = time.monotonic(), list(plan.strokes), 0, 0
    code = 4
    while code == 4:
        with Run(command, place) as run:
            while left and until(lambda at=left[0][0]: reached(place / "run" / "ledger.jsonl") >= at, run):
                _, task = left.pop(0)
                if not task:
                    (place / "notice").write_text(str(notices := notices + 1))
                    break
                signals += strike(run, task)
            done = run.finish(LONGEST)
            code = done.code
        if code not in (0, 4):
            raise RuntimeError(f"it ended with status {code}:\n{done.text}")
    seconds = time.monotonic() - began
    audit = evener(place, "audit", "run", "--json")
    account = audit.json
    wrong = "" if account["clean"] and account["step"] == steps else audit.text
    computed = sum(path.stat().st_size for path in place.glob("begun-*"))
    return Played(seconds, computed, account["gradients"], signals, notices, wrong)


def play_torchrun(place: Path, plan: Plan, *, steps: int, pause: float) -> Played:
    """The same of DistributedDataParallel: a rank gets the signal, all start again from the newest checkpoint."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", WORKERS]
    command = [*torchrun, "--max-restarts", 100, PEER, place, steps, pause]
    began, signals = time.monotonic(), 0
    # Else its rendezvous shares its store with the workers, who find the addresses of the dead in it.
    with Run(command, place, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") as run:
        for at, task in plan.strokes:
            if not until(lambda at=at: number(place / "step") >= at, run):
                break
            rank = task.partition(":")[2]
            pid = number(place / f"pid-{rank}")
            os.kill(pid, signal.SIGTERM)
            signals += 1
            until(lambda rank=rank, pid=pid: number(place / f"pid-{rank}") != pid, run)  # all have started again
        done = run.finish(LONGEST)
    if done.code:
        raise RuntimeError(done.text)
    computed = sum(path.stat().st_size for path in place.glob("begun-*"))
    return Played(time.monotonic() - began, computed, steps * WORKERS, signals, 0)


def number(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


def runs(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], Played]]]:
    """Name of a run -> how it is played in a directory."""
    count, steps, pause = args.preemptions, args.steps, args.pause
    for ps in (1, 2):
        plan = Plan.drawn(count, steps, ps, args.seed)
        yield f"ps{ps} undisturbed", lambda place, ps=ps: play(place, Plan(()), ps=ps, steps=steps, pause=pause)
        yield f"ps{ps} preempted", lambda place, ps=ps, plan=plan: play(place, plan, ps=ps, steps=steps, pause=pause)
    rounds = steps // WORKERS  # as many gradients
    plan = Plan.drawn(count, rounds, 0, args.seed)
    yield "torchrun undisturbed", lambda place: play_torchrun(place, Plan(()), steps=rounds, pause=pause)
    yield "torchrun preempted", lambda place: play_torchrun(place, plan, steps=rounds, pause=pause)


def told(name: str, played: Played) -> str:
    lost = played.computed - played.kept
    strokes = played.signals + played.notices
    each = f", {lost / strokes:.1f} a preemption" if strokes else ""
    audit = "" if name.startswith("torchrun") else f", audit {'clean' if not played.wrong else 'NOT CLEAN'}"
    return (
        f"{name:22s} {played.seconds:6.1f} s, {played.signals} signals, {played.notices} notices, computed "
        f"{played.computed}, kept {played.kept}: goodput {played.goodput:.4f} ({lost} for nothing{each}){audit}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preemptions", type=int, default=50)
    parser.add_argument("--steps", type=int, default=15300, help="gradients, of all workers together")
    parser.add_argument("--pause", type=float, default=15.0, metavar="MS", help="of a batch, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="runs whose names begin so: ps1, ps2, torchrun")
    args = parser.parse_args()
    failed = False
    for name, run in runs(args):
        if name.startswith(args.only):
            with tempfile.TemporaryDirectory(prefix="preempted-") as place:
                played = run(Path(place))
            failed |= bool(played.wrong)
            print(told(name, played), *([played.wrong] * bool(played.wrong)), sep="\n", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
