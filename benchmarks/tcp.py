"""Between two hosts, over TCP: evener's steps/s against TensorFlow's, and its bytes/s against plain sockets'.

    python benchmarks/tcp.py [--tensorflow /tmp/tf/bin/python] [--steps 1500] [--repeats 5] [--only async,tensorflow]

The hosts are two network namespaces joined by veth (root, Linux): the ps task runs in one, both workers in the other.
All train the 784-H-10 network on the same digits, batch 100, plain SGD, one thread a task. Every way is measured once
per repeat, in turn; medians are compared. A rate is counted over the global steps after a warm-up. The rates of links
(bytes a second, both directions of two clients together) move the network's own size, 1.6 MB, there and back.

TensorFlow 1's cluster programs run with TensorFlow 2 as well; any of its Pythons will do:
python3 -m venv /tmp/tf; /tmp/tf/bin/pip install tensorflow-cpu. Without it those rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "peers"
sys.path.insert(0, str(ROOT / "tests" / "system"))

from networks import Network, missing  # noqa: E402 - it is a tool of the tests
from running import Run  # noqa: E402

from evener.transport import keys  # noqa: E402

SERVER, CLIENT = 0, 1  # hosts
PORT = 2222


@dataclass(frozen=True)
class Rate:
    """One measurement. On a machine that others use too, what a unit costs says more than how many there are."""

    per_second: float
    cpu_seconds: float  # of all tasks together, for one unit


def seconds_of(task: psutil.Process) -> float:
    """Of a processor, so far."""
    times = task.cpu_times()
    return times.user + times.system


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured."""

    network: Network
    place: Path  # with the directory "keys" and the file "data.npz"
    tensorflow: str
    hidden: int
    steps: int
    seconds: int  # of one measurement of a link

    def measured(self, runs: list[Run], counting: list[Run]) -> Rate:
        """What they do a second, and what it costs all of them, between the words of those that count.

        Raises AssertionError when one fails or hangs. TensorFlow's servers never end.
        """
        tasks = [psutil.Process(run.process.pid) for run in runs]
        try:
            for run in counting:
                run.wait_for(r"(?m)^go$", 120.0)
            before = sum(seconds_of(task) for task in tasks)
            said = [json.loads(run.wait_for(r"(?m)^{.*}$", 120.0)[0]) for run in counting]
            spent = sum(seconds_of(task) for task in tasks) - before
            for run in runs:
                if "tensorflow" not in str(run.process.args):
                    done = run.finish(60.0)
                    assert done.code == 0, done.text
        finally:
            for run in runs:
                run.__exit__()
        return Rate(sum(one["rate"] for one in said), spent / sum(one["count"] for one in said))

    def start(self, host: int, *command: object) -> Run:
        return self.network.start(host, command, self.place, PYTHONPATH=os.environ.get("PYTHONPATH", str(ROOT / "src")))


def training(script: str, *options: str) -> Callable[[Bench], Rate]:
    """Gradients a second of 1 ps + 2 workers."""
    per_step = 2 if {"--sync", "sync"} & set(options) else 1

    def measure(bench: Bench) -> Rate:
        tensorflow = script.startswith("tensorflow")
        python = bench.tensorflow if tensorflow else sys.executable
        ps, server = f"{Network.address(SERVER)}:{PORT}", Network.address(CLIENT)
        workers = f"{server}:{PORT},{server}:{PORT + 1}"
        data = bench.place / "data.npz" if tensorflow else tempfile.mkdtemp(dir=bench.place)
        counts = [
            "--hidden",
            bench.hidden,
            "--steps",
            bench.steps // per_step,
            "--warm-up",
            bench.steps // per_step // 5,
        ]
        keyed = ["--keys", bench.place / "keys"] if "keys" in options else []
        rest = [option for option in options if option != "keys"] + keyed

        def task(host: int, job: str, index: int) -> Run:
            return bench.start(host, python, PEERS / script, job, index, ps, workers, data, *counts, *rest)

        runs = [task(SERVER, "ps", 0), task(CLIENT, "worker", 0), task(CLIENT, "worker", 1)]
        rate = bench.measured(runs, [runs[1 if tensorflow else 0]])
        return Rate(rate.per_second * per_step, rate.cpu_seconds / per_step)

    return measure


def link(script: str, *, keyed: bool = False) -> Callable[[Bench], Rate]:
    """Bytes a second of two clients that send and are sent a payload in turn."""

    def measure(bench: Bench) -> Rate:
        nbytes = 4 * (784 * bench.hidden + bench.hidden * 11 + 10)
        words = [bench.place / "keys"] if keyed else []
        address = Network.address(SERVER)
        serve = bench.start(SERVER, sys.executable, PEERS / script, "serve", address, PORT, nbytes, 2, *words)
        ask = [sys.executable, PEERS / script, "ask", address, PORT, nbytes, bench.seconds, *words]
        clients = [bench.start(CLIENT, *ask), bench.start(CLIENT, *ask)]
        rate = bench.measured([serve, *clients], clients)
        return Rate(2 * nbytes * rate.per_second, rate.cpu_seconds)

    return measure


TRAINING: dict[str, Callable[[Bench], Rate]] = {
    "tensorflow": training("tensorflow_ps.py"),
    "async": training("evener_task.py"),
    "async-keys": training("evener_task.py", "keys"),
    "tensorflow-sync": training("tensorflow_ps.py", "--sync"),
    "sync": training("evener_task.py", "--mode", "sync"),
}
LINKS: dict[str, Callable[[Bench], Rate]] = {
    "sockets": link("plain_sockets.py"),
    "tcp": link("evener_link.py"),
    "tcp-keys": link("evener_link.py", keyed=True),
}


def measure(bench: Bench, names: list[str], repeats: int) -> dict[str, list[Rate]]:
    ways = TRAINING | LINKS
    rates: dict[str, list[Rate]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            try:
                rates[name].append(ways[name](bench))
            except AssertionError as error:
                if not name.startswith("tensorflow"):
                    raise
                print(f"{name} hung or failed, and is left out of repeat {repeat + 1}: {str(error)[:60]}")
                continue
            print(f"  {repeat + 1}/{repeats} {name}: {rates[name][-1]}", file=sys.stderr, flush=True)
    return rates


def show(rates: dict[str, list[Rate]], ways: dict[str, Callable[[Bench], Rate]], unit: float) -> None:
    """A row for each way: median, range, cost, and the median as a ratio of the rows before it."""
    names = [name for name in ways if rates.get(name)]
    middle = {name: statistics.median(rate.per_second for rate in rates[name]) / unit for name in names}
    for at, name in enumerate(names):
        values = [rate.per_second / unit for rate in rates[name]]
        cost = statistics.median(rate.cpu_seconds for rate in rates[name])
        against = ", ".join(f"{middle[name] / middle[base]:.2f} of {base}" for base in names[:at])
        row = f"{middle[name]:6.0f}  ({min(values):.0f}-{max(values):.0f})  {1e3 * cost:5.2f} ms of CPU"
        print(f"  {name:16} {row}  {against}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500, help="gradients per measurement, over both workers")
    parser.add_argument("--seconds", type=int, default=3, help="of one measurement of a link")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(TRAINING | LINKS))
    parser.add_argument("--tensorflow", default="/tmp/tf/bin/python", metavar="PYTHON", help="one that has TensorFlow")
    args = parser.parse_args()
    if reason := missing():
        raise SystemExit(f"benchmarks/tcp.py: {reason}")
    names = [name for name in args.only.split(",") if name]
    if not os.access(args.tensorflow, os.X_OK):
        print(f"no TensorFlow at {args.tensorflow}: its rows are left out (see --tensorflow)")
        names = [name for name in names if not name.startswith("tensorflow")]
    with tempfile.TemporaryDirectory(prefix="evener-bench-") as place, Network(2) as network:
        prepare(Path(place))
        load = os.getloadavg()[0]
        bench = Bench(network, Path(place), args.tensorflow, args.hidden, args.steps, args.seconds)
        rates = measure(bench, names, args.repeats)
    print(
        f"784-{args.hidden}-10, batch 100, 1 ps + 2 workers over veth, {os.cpu_count()} cores, load before {load:.1f};"
    )
    print(f"medians of {args.repeats}. Gradients/s (and the cost of one):")
    show(rates, TRAINING, 1)
    print("MB/s, there and back, two clients (and the cost of one payload there and back):")
    show(rates, LINKS, 1e6)


def prepare(place: Path) -> None:
    """The keys of the cluster, and the digits as TensorFlow's script reads them."""
    import numpy as np
    import torch

    from evener.data import digits
    from evener.data.dataset import as_data

    keys.new(place / "keys", keys.names(1, 2))
    train = as_data(digits.load()).train
    inputs, target = train.batch(torch.arange(len(train)))
    np.savez(place / "data.npz", inputs=inputs.numpy(), target=target.numpy())


if __name__ == "__main__":
    main()
