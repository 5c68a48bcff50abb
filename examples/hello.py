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
from concurrent.futures import ThreadPoolExecutor

from evener import transport
from evener.cluster.cluster import ClusterSpec, Task
from evener.errors import EvenerError
from evener.transport.channel import Arrived, Listener, Memory, Ranges, wait

#: What travels beside a message is tensors; a greeting has none.
NOTHING = Ranges(Memory(0), ())


def be(index: int, hosts: list[str], seconds: float) -> None:
    """Be one task: listen at your own address, greet the other task, hear its greeting."""
    cluster = ClusterSpec.of({"worker": hosts})  # tf.train.ClusterSpec({"local": [...]}), checked
    # tf.train.Server(...). A greeting is for everybody: real tasks have keys (docs/security.md).
    listener = transport.listen("tcp", f"tcp://{cluster.address(Task('worker', index))}", insecure=True)
    print(f"task {index} listens at {listener.address}", flush=True)
    with ThreadPoolExecutor(1) as beside:  # a server answers whoever comes, while we look for the other one
        heard = beside.submit(greeting, listener, seconds)
        other = 1 - index
        try:
            # The other may start later: this tries until it is there, and after `seconds` says why it is not.
            address = f"tcp://{cluster.address(Task('worker', other))}"
            channel = transport.connect(address, NOTHING, NOTHING, timeout=seconds)
            channel.send(f"Hello from server{index + 1}!".encode())
            thanked = channel.receive(seconds)  # so that neither leaves before it was heard
            if thanked is None or not heard.result():
                raise SystemExit(f"the other task connected, but did not answer within {seconds:g} s")
            print(f"task {index} hears: {heard.result()}", flush=True)
            channel.close()
        finally:
            heard.cancel()
    listener.close()


def greeting(listener: Listener, seconds: float) -> str:
    """What the other task says, thanked for; empty if it says nothing in so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        for ready in wait([listener], left):
            for event in ready.receive():
                if isinstance(event, Arrived):
                    listener.send(event.peer, b"thank you")
                    return event.header.decode()
    return ""


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
