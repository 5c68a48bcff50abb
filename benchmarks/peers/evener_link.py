"""What evener's links between hosts move: as plain_sockets.py, with a Listener and Channels."""

from __future__ import annotations

import math

from job import Job, told

from evener import transport
from evener.devices import prepare_process
from evener.transport import keys as keys_module
from evener.transport.channel import Arrived, Closed, Memory, Opened, Ranges, wait


def serve(job: Job, keys: keys_module.Keys | None) -> None:
    parameters = [memoryview(b"x" * job.nbytes)]
    listener = transport.listen("tcp", f"tcp://{job.ps[0]}", keys=keys, insecure=keys is None)
    left = 0
    while left < len(job.workers):
        wait([listener], 10.0)
        for event in listener.receive():
            match event:
                case Opened(peer):
                    listener.admit(peer, (job.nbytes,))
                case Arrived(peer):
                    listener.send(peer, b"release", parameters)
                case Closed():
                    left += 1
    listener.close()


def ask(job: Job, keys: keys_module.Keys | None) -> None:
    memory, meter = Memory(2 * job.nbytes), job.slot()
    boxes = Ranges(memory, ((0, job.nbytes),)), Ranges(memory, ((job.nbytes, job.nbytes),))
    channel = transport.connect(f"tcp://{job.ps[0]}", *boxes, timeout=30.0, keys=keys)
    channel.send(b"hello")  # so that the server has admitted us before the first payload
    channel.receive(10.0)
    while True:
        channel.send(b"push", payload=True)
        assert channel.receive(10.0) is not None
        meter.count(math.nan)


if __name__ == "__main__":
    mine = told()
    serves = mine.role == "ps"
    prepare_process(1, serves=serves)  # as every task does
    own = keys_module.load(mine.keys, "ps-0" if serves else "worker-0") if mine.keys else None
    (serve if serves else ask)(mine, own)
