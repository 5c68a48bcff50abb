"""A network of several hosts on this machine: one network namespace each, joined by a switch.

Nothing can be left behind. A namespace has no name here: it lives as long as a descriptor of it is open in this
process, or a process runs in it, and its links and its switch go with it. So two test runs cannot meet either.

Abstract UNIX sockets belong to a network namespace too, so tasks of two hosts reach each other by the network alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from running import Run

CLONE_NEWNET = 0x40000000


class Network:
    """Hosts h0, h1, ... of a network 10.77.0.0/24; a host is named by its index, and reached at `address(host)`.

    Use it in a `with`: leaving it kills what was started here and still runs.
    """

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self._stack = contextlib.ExitStack()
        self._switch = self._namespace()
        self._namespaces = [self._namespace() for _ in range(hosts)]
        try:
            self._ip(self._switch, "link", "add", "switch", "type", "bridge")
            self._ip(self._switch, "link", "set", "switch", "up")
            for host in range(hosts):
                self._plug_in(host)
        except BaseException:
            self.close()
            raise

    def _namespace(self) -> int:
        fd = new_namespace()
        self._stack.callback(os.close, fd)
        return fd

    def _plug_in(self, host: int) -> None:
        """A cable from a host (its end: "cable") to the switch (its end: "to-h0")."""
        namespace, socket = self._namespaces[host], f"to-h{host}"
        there = path_of(self._switch)
        self._ip(namespace, "link", "add", "cable", "type", "veth", "peer", "name", socket, "netns", there)
        self._ip(namespace, "address", "add", f"{self.address(host)}/24", "dev", "cable")
        for device in ("lo", "cable"):
            self._ip(namespace, "link", "set", device, "up")
        self._ip(self._switch, "link", "set", socket, "master", "switch", "up")

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host + 1}"

    def words(self, host: int, command: Sequence[object]) -> list[str]:
        """The command that runs `command` on a host; both are the same process."""
        return ["nsenter", f"--net={path_of(self._namespaces[host])}", "--", *map(str, command)]

    def start(self, host: int, command: Sequence[object], cwd: Path, **environment: str) -> Run:
        """Start a command on a host."""
        return self._stack.enter_context(Run(self.words(host, command), cwd, **environment))

    # --- faults. Both ends of a cable are treated, since an end's queue sees only what leaves by it.

    def cut(self, host: int) -> None:
        """Whatever this host sends, and is sent, vanishes from now on. No end is told: to both their link is up."""
        self._queue(host, "blackhole")

    def limit(self, host: int, megabits: float) -> None:
        """So many million bits a second on the cable of this host, in each direction; what waits longer is dropped."""
        self._queue(host, "tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "200ms")

    def heal(self, host: int) -> None:
        """The cable of this host is again as it was at first."""
        for namespace, device in self._ends(host):
            self._tc(namespace, "del", "dev", device, "root")

    def _queue(self, host: int, *kind: str) -> None:
        for namespace, device in self._ends(host):
            self._tc(namespace, "replace", "dev", device, "root", *kind)

    def _ends(self, host: int) -> list[tuple[int, str]]:
        return [(self._namespaces[host], "cable"), (self._switch, f"to-h{host}")]

    @staticmethod
    def _ip(namespace: int, *words: str) -> None:
        checked("nsenter", f"--net={path_of(namespace)}", "--", "ip", *words)

    @staticmethod
    def _tc(namespace: int, *words: str) -> None:
        checked("nsenter", f"--net={path_of(namespace)}", "--", "tc", "qdisc", *words)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_namespace() -> int:
    """A descriptor of a new network namespace, with nothing in it but a loopback device that is down.

    Raises:
        OSError: this process may not make any.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    made: list[int | OSError] = []

    def leave() -> None:  # a thread of its own: `unshare` moves the calling thread, and it ends there
        if libc.unshare(CLONE_NEWNET):
            made.append(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
        else:
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, OSError):
        raise result
    return result


def path_of(namespace: int) -> str:
    """A path by which other processes can open this process's descriptor."""
    return f"/proc/{os.getpid()}/fd/{namespace}"


def checked(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


@functools.cache
def missing() -> str:
    """Why this machine cannot have such a network; empty when it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if absent := [name for name in ("ip", "tc", "nsenter") if shutil.which(name) is None]:
        return f"no command {', '.join(absent)} here (iproute2, util-linux)"
    try:
        with Network(2) as network:
            for fault in (network.cut, functools.partial(network.limit, megabits=100)):
                fault(0)
            network.heal(0)
    except OSError as error:
        return f"this machine allows no network of namespaces: {error}"
    return ""
