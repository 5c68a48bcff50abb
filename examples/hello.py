"""A cluster of two tasks that greet each other.

The TensorFlow 1 tutorials begin with two programs: each makes a ``tf.train.Server`` of one ``ClusterSpec`` with two
addresses, and says hello. This is both of them. In two terminals, in any order:

    python examples/hello.py --task-index 0
    python examples/hello.py --task-index 1

or, without the option, both tasks at once. In evener you need none of this to train: ``evener train`` and
``evener task`` make the links. It shows what they stand on: an address list, a listener, a channel, a message.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from evener import transport
from evener.cluster.cluster import Cluster, Task
from evener.errors import EvenerError
from evener.transport.channel import Arrived, Channel, Listener, Memory, Ranges, wait

#: What travels beside a message is tensors; a greeting has none.
NOTHING = Ranges(Memory(0), ())


def be(index: int, hosts: list[str], seconds: float) -> None:
    """Be one task: listen at your own address, greet the other task, hear its greeting."""
    cluster = Cluster.of({"worker": hosts})  # tf.train.ClusterSpec({"local": [...]}), checked
    listener = transport.listen("tcp", f"tcp://{cluster.address(Task('worker', index))}")  # tf.train.Server(...)
    print(f"task {index} listens at {listener.address}", flush=True)
    other = 1 - index
    # The other may start later: this tries until it is there, and after `seconds` says why it is not.
    channel = transport.connect(f"tcp://{cluster.address(Task('worker', other))}", NOTHING, NOTHING, timeout=seconds)
    channel.send(f"Hello from server{index + 1}!".encode())
    print(f"task {index} hears: {greeting(listener, channel, seconds)}", flush=True)
    channel.close()
    listener.close()


def greeting(listener: Listener, channel: Channel, seconds: float) -> str:
    """What the other task says; thanked for, so that neither leaves before it was heard."""
    deadline = time.monotonic() + seconds
    heard = ""
    while not heard and (left := deadline - time.monotonic()) > 0:
        for ready in wait([listener], left):
            for event in ready.receive():
                if isinstance(event, Arrived):
                    heard = event.header.decode()
                    listener.send(event.peer, b"thank you")
    if channel.receive(max(deadline - time.monotonic(), 0.0)) is None or not heard:
        raise SystemExit(f"the other task connected, but did not answer within {seconds:g} s")
    return heard


def main() -> None:
    options = argparse.ArgumentParser(description="Two tasks that greet each other.")
    options.add_argument("--task-index", "--task_index", type=int, choices=(0, 1), help="which; default both")
    options.add_argument("--hosts", default="localhost:2222,localhost:2223", help="where the two tasks listen")
    options.add_argument("--seconds", type=float, default=60.0, help="to wait for the other task")
    args = options.parse_args()
    if args.task_index is not None:
        try:
            be(args.task_index, args.hosts.split(","), args.seconds)
        except EvenerError as error:  # a taken port, or nobody there: what, why, and how to mend it
            raise SystemExit(f"task {args.task_index}: {error}") from None
        return
    both = [subprocess.Popen([sys.executable, *sys.argv, "--task-index", str(index)]) for index in range(2)]
    try:
        if any([task.wait() for task in both]):  # a list: wait for both
            raise SystemExit(1)
    finally:
        for task in both:
            task.kill()  # after Ctrl-C, nobody stays


if __name__ == "__main__":
    main()
