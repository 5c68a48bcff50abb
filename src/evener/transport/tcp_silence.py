"""Is the other host still there? The kernel asks it, and we ask the kernel; no thread, no message of ours.

An idle link is probed by keepalive. One with bytes on their way is not, so there we look at what the kernel knows: it
has repeated something, and nothing has come back for as long as a heartbeat may be missing. TCP_USER_TIMEOUT would say
the same and more: it also cuts a peer that lives and does not read just now (measured), a worker that computes for
longer than the heartbeat, for one. A process that is stopped or hangs has a kernel that answers for it: whether to wait
for such a one is not a matter of links.
"""

from __future__ import annotations

import math
import socket

#: Offsets in the kernel's `struct tcp_info`.
RETRANSMITS, PROBES, LAST_ACK_MILLISECONDS, TCP_INFO_BYTES = 2, 3, 56, 104


def prepare(sock: socket.socket, heartbeat: float) -> None:
    """Make a connected socket one of ours: never blocks, sends at once, notices a host that says nothing."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every, count = keepalive(heartbeat)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)


def keepalive(heartbeat: float) -> tuple[int, int]:
    """Seconds between probes, and how many go unanswered, so that silence is noticed after `heartbeat` seconds.

    >>> keepalive(10.0), keepalive(4.0), keepalive(1.0)
    ((2, 4), (1, 3), (1, 1))
    """
    every = min(max(1, int(heartbeat / 4)), 32767)
    return every, min(max(1, math.ceil(heartbeat / every) - 1), 127)


def silent(sock: socket.socket, heartbeat: float) -> bool:
    """Has nothing come back for `heartbeat` seconds, although something was sent twice?"""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:
        return False
    if len(info) < LAST_ACK_MILLISECONDS + 4 or not (info[RETRANSMITS] or info[PROBES]):
        return False
    since = int.from_bytes(info[LAST_ACK_MILLISECONDS : LAST_ACK_MILLISECONDS + 4], "little")
    return since >= 1000 * heartbeat


def why(heartbeat: float) -> str:
    """Why a link ended of which we know no more."""
    return f"broke, or nothing came by it for {heartbeat:g} s"
