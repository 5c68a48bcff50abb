"""Workers of unequal speed in real processes: gradients used a second, beside the same rules on a virtual clock.

    python benchmarks/unequal.py                # step times 1,2,3,4 and 1,1,1,10, the fastest 20 ms: five minutes
    python benchmarks/unequal.py --unit 100 --seconds 12
    python benchmarks/unequal.py --json

Workers sleep (`--slow`), so two cores are enough. One server, a small network: waiting is what is measured. Modes run
in turns, the figure is the median of --rounds runs; 1.00 is the rate of `evener.simulate`, whose links take no time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from evener.modes import Async, Bounded, Mode, Quorum, Rennala, Ringmaster, Softsync, Sync, options_of_mode
from evener.simulate.crew import SimulatedCrew, constant

SPEEDS = {"1,2,3,4": [1.0, 2.0, 3.0, 4.0], "1,1,1,10": [1.0, 1.0, 1.0, 10.0]}
MODES: dict[str, Mode] = {
    "async": Async(),
    "sync": Sync(),
    "sync, one backup": Sync(replicas_to_aggregate=3),
    "bounded 4": Bounded(),
    "rennala 4": Rennala(gradients_per_update=4),
    "rennala 16": Rennala(),
    "ringmaster 4": Ringmaster(max_delay=4),
    "ringmaster 8": Ringmaster(),
    "softsync 4": Softsync(),
    "quorum 3": Quorum(),
}
BY_SPEED, DDP = "sync, batches by speed", "DistributedDataParallel"
PEER = Path(__file__).parent / "peers" / "ddp_unequal.py"


def theory(name: str, times: list[float]) -> float:
    """Gradients used in the time that the fastest takes for one."""
    if name == BY_SPEED:
        return sum(1 / time for time in times)
    mode = Sync() if name == DDP else MODES[name]
    return SimulatedCrew(mode.start(0, len(times)), len(times), constant(times)).play(1200, 13200).rate


def measured(name: str, times: list[float], unit: float, seconds: float) -> float:
    """The same of real processes, as their own figures tell it."""
    rate = theory(name, times) / unit  # gradients a second
    if name == DDP:
        words = [",".join(f"{1000 * unit * time:g}" for time in times), str(max(20, round(rate * seconds / 4)))]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(PEER)]
        done = subprocess.run([*torchrun, *words], capture_output=True, text=True, check=True, timeout=600)
        return float(done.stdout.splitlines()[-1]) / 100 * unit
    slow = ",".join(f"worker:{worker}={1000 * unit * time:g}ms" for worker, time in enumerate(times))
    if name == BY_SPEED:
        options, gradients = ["--mode", "sync", "--batch-by-speed"], 4
    else:
        gradients = MODES[name].terms(4).gradients or 3
        options = ["--mode", MODES[name].name]
        for option, value in options_of_mode(MODES[name]).items():
            options += [f"--{option.replace('_', '-')}", str(value)]
    steps = max(20, round(rate * seconds / gradients))
    with tempfile.TemporaryDirectory(prefix="unequal-") as directory:
        command = [
            sys.executable, "-m", "evener", "train", "mnist", "--hidden", "8", "--ps", "1", "--workers", "4", *options,
            "--slow", slow, "--train-steps", str(steps), "--json", "--quiet", "--save-summary-secs", "1000",
            "--logdir", str(Path(directory) / "run"),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600, cwd=directory)
    said = json.loads(done.stdout.splitlines()[-1])
    return said["examples_per_second"] / 100 * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", type=float, default=20.0, metavar="MS", help="what the fastest takes for a batch")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="modes whose names begin so")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = [name for name in [DDP, *MODES, BY_SPEED] if name.startswith(args.only or "")]
    found: dict[str, dict[str, list[float]]] = {speeds: {name: [] for name in names} for speeds in SPEEDS}
    for _ in range(args.rounds):
        for speeds, times in SPEEDS.items():
            for name in names:
                found[speeds][name].append(measured(name, times, args.unit / 1000, args.seconds))
    for speeds, times in SPEEDS.items():
        for name in names:
            right, seen = theory(name, times), statistics.median(found[speeds][name])
            spread = f"{min(found[speeds][name]):.2f} to {max(found[speeds][name]):.2f}"
            beside = ""
            if names[0] == DDP:
                beside = f", {seen / statistics.median(found[speeds][DDP]):.2f} x DDP"
            print(
                f"{speeds:9s} {name:24s} {seen:5.2f} of {right:5.2f}: {seen / right:.3f}  ({spread}){beside}",
                flush=True,
            )
    if args.json:
        json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
