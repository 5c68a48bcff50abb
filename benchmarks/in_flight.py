"""One gradient of a worker under way, or two (--in-flight): gradients a second and CPU of one, in turns.

    python benchmarks/in_flight.py --rounds 5 --quiet 0.3     # counts while others use less of a core
    python benchmarks/in_flight.py --apart 0,300 --rounds 3     # two hosts (network namespaces, root), Mbit/s (0: all)

Ratios are of in-flight 2 to 1 in the same round: median (range).
"""

from __future__ import annotations

import argparse
import itertools
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from beside.measuring import Bench, Failed, hosts, prepare
from beside.ways import ONE, Way, Work, cluster

FAST = 100_000.0  # Mbit/s: no limit
Case = tuple[str, Work, tuple[Way, Way], float]  # what it is called, and Mbit/s between hosts


def ways(workers: int, options: str, *, apart: bool = False) -> tuple[Way, Way]:
    one, two = (
        Way(
            name=f"in flight {flight}", program="evener_way.py", roots=cluster(1, workers) if apart else ONE, ps=1,
            mode=f"async in_flight={flight}{options}", workers=workers, counts=workers, shared=True,
        )
        for flight in (1, 2)
    )  # fmt: skip
    return one, two


def near(hidden: list[int]) -> Iterator[Case]:
    for size, workers, transport in itertools.product(hidden, (1, 2), ("shared", "tcp")):
        work = Work(name=f"MLP {size}", hidden=size, ways=(), updates=100)
        options = "" if transport == "shared" else " transport=tcp"
        yield f"{work.name}, 1 ps + {workers}, {transport}", work, ways(workers, options), 0.0


def far(hidden: list[int], speeds: list[float]) -> Iterator[Case]:
    for size, speed, batch in itertools.product(hidden, speeds, (100, 1000)):
        work = Work(name=f"MLP {size}", hidden=size, ways=(), updates=20, apart=True)
        limit = f"{speed:g} Mbit/s" if speed else "no limit"
        pair = ways(1, f" batch_size={batch}", apart=True)
        yield f"{work.name}, batch {batch}, 1 ps + 1 on two hosts, {limit}", work, pair, speed


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--hidden", default="100,500")
    parser.add_argument("--apart", default="", metavar="MBIT,...", help="between hosts instead, at these speeds")
    parser.add_argument("--quiet", type=float, default=99.0, metavar="CORES", help="only while others use less")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    hidden = [int(size) for size in args.hidden.split(",")]
    cases = list(far(hidden, [float(speed) for speed in args.apart.split(",")]) if args.apart else near(hidden))
    cases = [case for case in cases if args.only in case[0]]
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as place, hosts() as network:
        prepare(Path(place))
        bench = Bench(place=Path(place), peers="", network=network, seconds=args.seconds)
        found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name, *_ in cases}
        for turn in range(args.rounds):
            for name, work, pair, speed in cases:
                if work.apart and network is not None:
                    network.limit(0, speed or FAST)
                try:
                    one, two = (bench.measure(work, way) for way in (pair if turn % 2 == 0 else pair[::-1]))
                except Failed as failed:
                    print(f"{name}: {failed}", file=sys.stderr)
                    continue
                if turn % 2:
                    one, two = two, one
                row = one.rate, two.rate, one.cpu_ms, two.cpu_ms
                if max(one.others, two.others) < args.quiet:
                    found[name].append(row)
                said = " ".join(f"{number:.2f}" for number in row)
                print(
                    f"  {turn + 1} {name}: {said}, others {one.others:.2f} {two.others:.2f}",
                    file=sys.stderr,
                    flush=True,
                )
    for name, rows in found.items():
        if rows:
            rates, more, cpu, cpus = (list(column) for column in zip(*rows, strict=True))
            ratio = [two / one for one, two in zip(rates, more, strict=True)]
            costs = [two / one for one, two in zip(cpu, cpus, strict=True)]
            speed = f"{statistics.median(rates):.0f} -> {statistics.median(more):.0f}/s, x {spread(ratio)}"
            spent = f"{statistics.median(cpu):.2f} -> {statistics.median(cpus):.2f} ms, x {spread(costs)}"
            print(f"{name} ({len(rows)}): {speed}; CPU {spent}")


if __name__ == "__main__":
    main()
