"""Break the links of a worker to its ps tasks, as an ordinary user can; a network of namespaces would take root.

The kernel lends a descriptor of a process to who started it (pidfd_getfd), and a connection that is shut down by it is
shut for both ends, as if a switch between them had reset it. Only links to the ps tasks are: they are known by where
those listen. The worker may connect again at once; a cable that stays pulled is shown by tests/system/test_network.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

from evener.commands.chaos.processes import Living, look
from evener.commands.chaos.remains import Belongings

_GETFD = 438  # pidfd_getfd has this number on every processor


def cut(worker: Living, servers: Belongings) -> int:
    """Shut down a worker's connections to whoever holds these; how many there were."""
    try:
        handle = os.pidfd_open(worker.pid)
    except OSError:
        return 0
    try:
        seen = look(worker.pid)
        if seen is None or not worker.same(seen[0]):
            return 0
        return sum(_shut(fd, servers) for fd in _sockets(worker.pid, handle))
    finally:
        os.close(handle)


def _sockets(pid: int, handle: int) -> list[int]:
    lent = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(entry).startswith("socket:"):
                    lent.append(_lent(handle, int(entry.name)))
    return lent


def _shut(fd: int, servers: Belongings) -> bool:
    with socket.socket(fileno=fd) as link, contextlib.suppress(OSError):
        if _leads_to(link, servers):
            link.shutdown(socket.SHUT_RDWR)
            return True
    return False


def _leads_to(link: socket.socket, servers: Belongings) -> bool:
    peer = link.getpeername()
    if link.family == socket.AF_UNIX:
        name = peer.decode(errors="replace") if isinstance(peer, bytes) else str(peer)
        return bool(name) and name.replace("\0", "@", 1) in servers.sockets
    return link.family in (socket.AF_INET, socket.AF_INET6) and peer[1] in servers.ports


def _lent(handle: int, fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    lent = int(libc.syscall(_GETFD, handle, fd, 0))
    if lent < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return lent


@functools.cache
def missing() -> str:
    """Why links cannot be broken here; empty when they can. Tried on a process of its own."""
    words = [sys.executable, "-S", "-c", "input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            handle = os.pidfd_open(child.pid)
            try:
                os.close(_lent(handle, 0))
            finally:
                os.close(handle)
        except OSError as error:
            return f"the system lends no descriptors of processes (pidfd_getfd: {error.strerror})"
        finally:
            child.kill()
    return ""
