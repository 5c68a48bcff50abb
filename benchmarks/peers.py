"""evener beside every peer on the same work, in turns: gradients a second, CPU of one, and the ratios aimed at.

    make bench-peers                                         # all, and writes benchmarks/RESULTS.md and what quotes it
    make bench-peers BENCH='--only "MLP 500" --rounds 1'      # a part, and writes nothing
    python benchmarks/peers.py --ways evener,free --rounds 1 --seconds 1 --busy

Works: MLP 784-H-10 on the digits (H = 100, 500, 13,900), a small transformer, and two hosts (network namespaces, root).
Batch 100, plain SGD, one thread a process. Each way is started anew in each round, does the first updates of its work,
after which losses are compared, and is then measured for --seconds. Ratios are those of one round; medians and ranges
are printed. Between hosts a link moves the 1.6 MB of MLP 500 there and back, two clients at once.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from beside import tables
from beside.aims import learned
from beside.measuring import ROOT, Bench, Failed, Sample, busy, hosts, prepare
from beside.ways import WORKS, Way, Work

DOCUMENTS = ("README.md", "docs/towers.md")
Measured = dict[tuple[str, str], list[Sample | None]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="", help="one that has TensorFlow and Ray; without it they are left out")
    parser.add_argument("--only", default="", metavar="WORK,...", help=", ".join(work.name for work in WORKS))
    parser.add_argument("--ways", default="", metavar="WORD,...", help="those whose names hold one of these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--busy", action="store_true", help="while another process uses a core")
    parser.add_argument("--write", action="store_true", help="RESULTS.md, and the figures that documents quote")
    args = parser.parse_args()
    if args.python:
        args.python = str(Path(args.python).absolute())  # programs start elsewhere; a venv's link is not followed
        if not os.access(args.python, os.X_OK):
            parser.error(f"there is no {args.python}.")
    if args.write and (args.only or args.ways):
        parser.error("--write is for whole runs: figures that are compared come from one run.")
    return args


def chosen(bench: Bench, args: argparse.Namespace) -> list[tuple[Work, Way]]:
    works = [work for work in WORKS if not args.only or work.name in args.only.split(",")]
    words = args.ways.split(",")
    return [
        (work, way) for work in works for way in work.ways
        if any(word in way.name for word in words) and bench.can(work, way)
    ]  # fmt: skip


def measure(bench: Bench, pairs: list[tuple[Work, Way]], rounds: int) -> Measured:
    """All rounds. What fails is told, and goes on in the next round."""
    found: Measured = {(work.name, way.name): [] for work, way in pairs}
    for turn in range(rounds):
        for work, way in pairs:
            since = time.monotonic()
            try:
                sample = bench.measure(work, way)
                said = f"{sample.rate:.0f}/s, {sample.cpu_ms:.2f} ms, loss {sample.loss:.2f}"
            except Failed as failed:
                sample, said = None, f"failed: {failed}"
            found[work.name, way.name].append(sample)
            took = time.monotonic() - since
            print(f"  {turn + 1}/{rounds} {work.name}: {way.name}: {said} ({took:.0f} s)", file=sys.stderr, flush=True)
    return found


def drop_unlearned(found: Measured) -> list[str]:
    """Takes out, and names, what was fast and did not learn."""
    said = []
    for work in WORKS:
        for turn in range(max((len(samples) for samples in found.values()), default=0)):
            keys = [key for key in found if key[0] == work.name and found[key][turn]]
            losses = {way: one.loss for key in keys if (one := found[key][turn]) for way in [key[1]]}
            good = learned(losses, untrained=math.log(10)) if work.learns else dict.fromkeys(losses, True)
            for way in [way for way in good if not good[way]]:
                said.append(f"{work.name}: {way} did not learn in round {turn + 1}: loss {losses[way]:.2f}")
                found[work.name, way][turn] = None
    return said


def heading(args: argparse.Namespace, load: float) -> str:
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "no commit"
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    machine = f"{os.cpu_count()} cores ({model or platform.machine()}), load before {load:.1f}"
    machine = f"{os.cpu_count()} cores ({model or platform.machine()}), load before {load:.1f}"
    return (
        f"Commit {commit}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine}"
        f"{', one core kept busy' if args.busy else ''}; {args.rounds} rounds in turns, {args.seconds:g} s each:\n"
        "median (range). One thread a process, batch 100, plain SGD. The loss is that of the last fifth of the first\n"
        "200 updates (11 M: 60, transformer: 150)."
    )


def write(text: str) -> None:
    """Into RESULTS.md, and its figures into the documents that quote them."""
    results = ROOT / "benchmarks" / "RESULTS.md"
    results.write_text(tables.replaced(results.read_text(), text))
    measured = tables.ratios(text)
    for name in DOCUMENTS:
        document = ROOT / name
        document.write_text(tables.requoted(document.read_text(), measured))


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that all children are ended too
    head = heading(args, os.getloadavg()[0])  # before: the commit and the load that is measured
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as place, hosts() as network, busy(args.busy):
        prepare(Path(place))
        bench = Bench(place=Path(place), peers=args.python, network=network, seconds=args.seconds)
        found = measure(bench, chosen(bench, args), args.rounds)
    bad = drop_unlearned(found)
    parts = [tables.of_work(work, found) for work in WORKS if any(key[0] == work.name for key in found)]
    text = "\n\n".join([head, tables.of_aims(found), *parts, *bad])
    print(text)
    if args.write:
        write(text)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
