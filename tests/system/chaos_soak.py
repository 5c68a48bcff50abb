"""Seeded random schedules of faults over short real runs: `python tests/system/chaos_soak.py [SEED ...]`.

A schedule is a mode, a size, how often checkpoints are written and some faults, all drawn from its seed. Most faults
are points in the tasks (`evener.chaos`): killed, told to leave, stopped, ended, delayed, hung, or on a full disk there.
Some schedules also kill the launcher and let the same command continue, or have strangers at every door. A stopped task
is sent SIGCONT after a while, by this program.

However a schedule goes, the run must end by itself with the exact number of steps, an account in which every batch
came exactly once, a model that has learned, and nothing left behind.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from running import EVENER, Run, alive, belongings, check_nothing_left, evener

from evener.commands.chaos.remains import drafts

STEPS = 200
#: A run that has not ended by then hangs. A loaded machine is slow; a stall would be 300 s.
LIMIT = 150.0
#: Points, and how often a life passes them at most: faults are laid where they happen.
OFTEN = STEPS // 3
POINTS = {
    "worker": {
        "worker.computing": OFTEN, "worker.pushing": OFTEN, "worker.pushed": OFTEN, "worker.hook": OFTEN,
        "worker.hello": 1, "worker.joined": 1, "worker.ending": 1, "worker.showing": 3, "worker.closing": 1,
        "worker.left": 1,
    },
    "ps": {
        "server.held": OFTEN, "server.applying": OFTEN, "server.applied": OFTEN, "server.starting": 1,
        "server.bound": 1, "server.granting": 2, "checkpoint.writing": 4, "checkpoint.written": 4, "disk.write": 6,
        "disk.fsync": 6, "disk.rename": 6,
    },
    "ps:0": {
        "server.restoring": 1, "server.draining": 1, "server.ending": 1, "server.ended": 1, "checkpoint.committed": 4,
        "checkpoint.deleting": 1,
    },
    "ps:1": {"server.following": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """What a seed stands for."""

    seed: int
    options: list[str]
    plan: str
    launcher_dies_after: float | None = None  # seconds
    stopped_for: list[float] = field(default_factory=list)  # seconds, of one stop after the other
    intruders: bool = False  # strangers connect to whatever listens, say nothing and stay

    def __str__(self) -> str:
        dies = f" launcher killed after {self.launcher_dies_after:.1f} s;" if self.launcher_dies_after else ""
        return f"seed {self.seed}: {' '.join(self.options)};{dies} EVENER_CHAOS='{self.plan}'"


def schedule(seed: int) -> Schedule:
    """The schedule of a seed."""
    chance = random.Random(seed)
    ps, workers = chance.choice([1, 2]), chance.choice([2, 3])
    options = ["--ps", str(ps), "--workers", str(workers), *mode(chance, workers)]
    tasks = [f"ps:{index}" for index in range(ps)] + [f"worker:{index}" for index in range(workers)]
    faults = [fault(chance, chance.choice(tasks)) for _ in range(chance.randint(2, 5))]
    if chance.random() < 0.2 and options[4:] != ["--mode", "sync"]:  # lockstep needs that very worker
        faults.append(f"worker:{chance.randrange(workers)}/worker.computing@{chance.randint(2, OFTEN)}=sleep:600")
        options += ["--stall-timeout", "24"]
    dies = chance.uniform(1.0, 6.0) if chance.random() < 0.1 else None
    options += ["--save-checkpoint-steps", str(chance.choice([5, 20, 50, 1000]))]
    stopped_for = [chance.uniform(0.1, 2.0) for _ in range(8)]
    if chance.random() < 0.3:
        options += ["--transport", "tcp", "--heartbeat-timeout", "1.5"]  # some stops look like deaths
    options += sizes(seed, options, workers)
    return Schedule(seed, options, "; ".join(faults), dies, stopped_for, intruders=chance.random() < 0.3)


def mode(chance: random.Random, workers: int) -> list[str]:
    name = chance.choice(
        ["async", "sync", "backup", "elastic", "bounded", "rennala", "ringmaster", "softsync", "quorum"]
    )
    if name == "backup":
        return ["--mode", "sync", "--replicas-to-aggregate", str(workers - 1)]
    if name == "elastic":
        return ["--mode", "sync", "--elastic"]
    return ["--mode", name]


def sizes(seed: int, options: Sequence[str], workers: int) -> list[str]:
    """Now and then each worker has a batch size of its own, said or measured. Drawn apart, so that seeds keep their
    faults."""
    chance = random.Random(f"sizes {seed}")
    if options[5] not in ("sync", "async", "bounded") or options[6].startswith(("--repl", "--elastic")):
        return []
    said = ["--batch-sizes", ",".join(["70", "50", "30"][:workers])]
    return chance.choice([[], said, ["--batch-by-speed"]])


def fault(chance: random.Random, task: str) -> str:
    points = POINTS[task.partition(":")[0]] | POINTS.get(task, {})
    point = chance.choice(list(points))
    life = chance.choice(["", "", "", "#2"])
    if point.startswith("disk.") and chance.random() < 0.5:
        return f"{task}{life}/{point}@{chance.randint(4, 8)}=enospc"  # a run that cannot begin to write ends by name
    pause = f"sleep:{chance.uniform(0.1, 1.5):.1f}"
    action = chance.choices(["kill", "term", "exit", "stop", pause], [5, 3, 1, 2, 1])[0]
    return f"{task}{life}/{point}@{chance.randint(1, points[point])}={action}"


def play(schedule: Schedule, directory: Path) -> list[str]:
    """Play one schedule; returns the faults that happened.

    Raises:
        AssertionError: something that was promised did not hold.
    """
    command = [
        *EVENER, "train", "mnist", "--train-steps", STEPS, "--hidden", 32, "--logdir", "run",
        "--max-restarts", 10, "--save-summary-secs", 1000, "--json", *schedule.options,
    ]  # fmt: skip
    if "--batch-sizes" not in schedule.options:
        command += ["--batch-size", 50]
    with Run(command, directory, EVENER_CHAOS=schedule.plan) as run:
        ended = watch(run, schedule)
    if not ended:
        with Run(command, directory) as run:
            watch(run, replace(schedule, launcher_dies_after=None))
    done = run.finish(1.0)
    assert done.code == 0, f"exit status {done.code}:\n{done.text}"
    assert done.json["global_step"] == STEPS, done.json
    assert done.json["validation_accuracy"] is not None, "nobody evaluated at the end"
    assert done.json["validation_accuracy"] > 0.5, done.json
    if (directory / "run" / "ledger.jsonl").exists():
        audit = evener(directory, "audit", "run")
        assert audit.code == 0, audit.text
    check_leases(directory, schedule)
    assert drafts(directory / "run") == []
    return [line.partition("chaos: ")[2] for line in logs(directory) if "evener.chaos" in line]


def check_leases(directory: Path, schedule: Schedule) -> None:
    path = directory / "run" / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json"
    manifest = json.loads(path.read_text())["body"]
    if manifest.get("by_samples"):
        missing = sum(stop - start for start, stop in manifest.get("unapplied_samples", []))
        assert manifest["next_lease"] - missing >= STEPS, manifest
        return
    used = manifest["next_lease"] - len(manifest["unapplied"])
    one_each = not {"sync", "rennala", "softsync", "quorum"} & set(schedule.options)
    assert used == STEPS if one_each else used >= STEPS, manifest


def logs(directory: Path) -> Iterator[str]:
    for file in sorted((directory / "run" / "logs").glob("*.log")):
        for line in file.read_text().splitlines():
            yield f"{file.stem}: {line}"


def watch(run: Run, schedule: Schedule) -> bool:
    """Until the run has ended, or its launcher was killed (False): lets stopped tasks go on. Nothing may be left."""
    stops, let_go, held, looked = list(schedule.stopped_for), {}, [], 0.0
    strangers: list[socket.socket] = []
    killed = False
    while run.process.poll() is None:
        now = time.monotonic() - run.started
        assert now < LIMIT, f"it did not end within {LIMIT} s:\n{run.said()}"
        if now - looked > 1.0:
            looked = now
            held.append(belongings(run.tasks()))
            if schedule.intruders and len(strangers) < 200:
                strangers += intrude(run.tasks())
        if schedule.launcher_dies_after is not None and now > schedule.launcher_dies_after and not killed:
            killed = True
            run.signal(signal.SIGKILL)
            run.process.wait()
            break
        for process in alive(run.tasks()):
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_STOPPED:
                    continue
                until = let_go.setdefault(process.pid, now + (stops.pop() if stops else 0.5))
                if now >= until:
                    del let_go[process.pid]
                    process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    for stranger in strangers:
        stranger.close()
    for one in held:
        check_nothing_left(run, one)
    return not killed


def intrude(tasks: Sequence[psutil.Process]) -> list[socket.socket]:
    """Connections to every port and abstract socket of these tasks, of somebody who says nothing."""
    doors: list[tuple[int, int, object]] = []
    for task in tasks:
        with suppress(psutil.Error):
            for one in task.net_connections("all"):
                if one.family == socket.AF_UNIX and str(one.laddr).startswith("@evener"):
                    doors.append((socket.AF_UNIX, socket.SOCK_SEQPACKET, "\0" + str(one.laddr)[1:]))
                elif one.status == psutil.CONN_LISTEN:
                    doors.append((one.family, socket.SOCK_STREAM, tuple(one.laddr)))
    strangers = []
    for family, kind, address in doors:
        stranger = socket.socket(family, kind)
        stranger.setblocking(False)
        with suppress(OSError):
            stranger.connect(address)
        strangers.append(stranger)
    return strangers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, help="default: FIRST ... FIRST + COUNT - 1")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--plan", help="play this EVENER_CHAOS instead of the seed's")
    parser.add_argument("--stopped", type=float, help="seconds that every stopped task stays so, instead of the seed's")
    parser.add_argument("--keep", action="store_true", help="leave the directories of failed runs")
    args = parser.parse_args()
    failed = 0
    for seed in args.seeds or range(args.first, args.first + args.count):
        chosen = schedule(seed)
        if args.plan is not None:
            chosen = Schedule(seed, chosen.options, args.plan, None, chosen.stopped_for)
        if args.stopped is not None:
            chosen = replace(chosen, stopped_for=[args.stopped] * 99)
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        began = time.monotonic()
        try:
            happened = play(chosen, directory)
            print(f"ok      {time.monotonic() - began:5.1f} s  {chosen}  happened: {len(happened)}", flush=True)
        except AssertionError as error:
            failed += 1
            print(f"FAILED  {time.monotonic() - began:5.1f} s  {chosen}\n{error}", flush=True)
            print(f"  again: {sys.executable} {sys.argv[0]} {seed}", flush=True)
            if args.keep:
                print(f"  its files: {directory}", flush=True)
                continue
        for file in sorted(directory.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        directory.rmdir()
    print(f"{failed} of {len(args.seeds) or args.count} schedules failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
