"""What travels over the UNIX socket of a shared link: first a worker's offer of its memory, then words.

A server looks at an offer before it trusts it: the kernel vouches for the user, seals keep the memory from shrinking
under the server (SIGBUS), and every part must lie inside it. Nothing is mapped before the server admits the peer, so
a stranger costs two descriptors and a few hundred bytes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from dataclasses import dataclass, field

from evener.errors import ProtocolError
from evener.transport.channel import MAX_HEADER, MAX_PARTS, Ranges

PREFIX = "shared:"

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
HEAD = struct.Struct("<4sHH")  # magic, version, number of parts; then the parts of the outbox and those of the inbox
PART = struct.Struct("<QQ")  # offset, nbytes
MAGIC, VERSION = b"EVSH", 1
MAX_OFFER = HEAD.size + 2 * MAX_PARTS * PART.size

#: First byte of all later packets; a header follows.
PLAIN, PAYLOAD = b"\0", b"\1"
MAX_PACKET = 1 + MAX_HEADER

#: A packet of the largest header must fit twice, and a burst of small ones (each costs the kernel about 1 KB).
SOCKET_BUFFER = 1 << 20

Parts = tuple[tuple[int, int], ...]


def abstract(address: str) -> str:
    """The kernel's name of an address: a leading zero byte keeps it out of the file system."""
    return "\0" + address.removeprefix(PREFIX)


def read_packet(sock: socket.socket, buffer: bytearray) -> int | None:
    """Length of the next packet, None when there is none yet, 0 when the other end is closed or dead.

    A peer that dies with unread messages in its queue shows as ECONNRESET first; what it sent before is still there.
    """
    for _ in range(2):
        try:
            return sock.recv_into(buffer)
        except BlockingIOError:
            return None
        except ConnectionError:
            continue
    return 0


def credentials_of(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel recorded them when the link was made."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def send_offer(sock: socket.socket, outbox: Ranges, inbox: Ranges) -> None:
    """Give the memory of a link to its server; once if both directions lie in the same memory."""
    memories = [outbox.memory] if outbox.memory is inbox.memory else [outbox.memory, inbox.memory]
    if not outbox.parts:
        memories = []  # a link for words alone
    packet = HEAD.pack(MAGIC, VERSION, len(outbox.parts))
    packet += b"".join(PART.pack(*part) for part in outbox.parts + inbox.parts)
    socket.send_fds(sock, [packet], [memory.fd for memory in memories])


@dataclass(slots=True)
class Offer:
    """What a worker offered, and our view of it once it is mapped. `outbox` and `inbox` are the worker's words."""

    outbox: Parts
    inbox: Parts
    fds: list[int] = field(default_factory=list)  # of the outbox's memory, and of the inbox's if it is another one

    def map(self) -> tuple[list[memoryview], list[memoryview]]:
        """(its outbox, its inbox) as our memory; the mappings outlive its process, so the descriptors can go."""
        if not self.fds:
            return [], []
        try:
            maps = [memoryview(mmap.mmap(fd, os.fstat(fd).st_size)) for fd in self.fds]
        except OSError as error:  # for example sealed against writing
            raise ProtocolError("the peer's memory cannot be mapped.", why=str(error)) from error
        self.close()
        return [maps[0][at : at + n] for at, n in self.outbox], [maps[-1][at : at + n] for at, n in self.inbox]

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def receive_offer(sock: socket.socket) -> Offer:
    """Read and judge a first packet.

    Raises:
        BlockingIOError: it has not come yet.
        ValueError, OSError: it is nothing that a worker of ours would send.
    """
    packet, fds, flags, _ = socket.recv_fds(sock, MAX_OFFER, 2, socket.MSG_CMSG_CLOEXEC)
    offer = Offer((), (), fds)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a first packet that is too long")
        _parse(packet, offer)
    except BaseException:
        offer.close()
        raise
    return offer


def _parse(packet: bytes, offer: Offer) -> None:
    if len(packet) < HEAD.size:
        raise ValueError("no offer of memory")
    magic, version, count = HEAD.unpack_from(packet)
    if magic != MAGIC:
        raise ValueError("not an evener peer")
    if version != VERSION:
        raise ValueError(f"a peer of protocol {version}, we speak {VERSION}")
    if count > MAX_PARTS or len(packet) != HEAD.size + 2 * count * PART.size:
        raise ValueError(f"a malformed offer of {count} parts in {len(packet)} bytes")
    if bool(count) != bool(offer.fds):
        raise ValueError(f"an offer of {count} parts in {len(offer.fds)} memories")
    parts = tuple(PART.iter_unpack(packet[HEAD.size :]))
    offer.outbox, offer.inbox = parts[:count], parts[count:]
    if count:
        _check(offer.fds[0], offer.outbox)
        _check(offer.fds[-1], offer.inbox)


def _check(fd: int, parts: Parts) -> None:
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
        raise ValueError("memory that is not sealed")
    size = os.fstat(fd).st_size
    for offset, nbytes in parts:
        if offset + nbytes > size:
            raise ValueError(f"a part that ends at byte {offset + nbytes} of a memory of {size}")
