"""Connections that a server is done with: each is closed when its peer has read what it was told last.

A socket that is closed with bytes unread makes the kernel throw away what was sent and not yet read, often the reason
why we close. So we say that nothing more comes, and read on, into nowhere, until the peer closes or its time is over.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable

from evener.transport.tcp_link import TcpLink

LINGER_SECONDS = 1.0
#: So many at a time: the oldest is closed for the next.
MOST = 256
#: A server that closes waits so long for what it sent just before.
CLOSE_SECONDS = 0.25


class Farewells:
    """They stay in the epoll of their server."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._links: dict[int, tuple[TcpLink, float]] = {}  # by descriptor, with the end of its time; the oldest first
        self._waste = bytearray(1 << 16)

    def __len__(self) -> int:
        return len(self._links)

    def begin(self, link: TcpLink, now: float) -> None:
        if len(self._links) >= MOST:
            self._close(next(iter(self._links)))
        fd = link.sock.fileno()
        self._links[fd] = (link, now + LINGER_SECONDS)
        self._go_on(fd, link)

    def hear(self, fd: int) -> None:
        """Something happened to a connection, perhaps to one of these."""
        if fd in self._links:
            self._go_on(fd, self._links[fd][0])

    def _go_on(self, fd: int, link: TcpLink) -> None:
        try:
            link.flush()
        except OSError:
            self._close(fd)
            return
        if not link.busy:
            link.hang_up()
        if link.drain(self._waste):
            self._close(fd)
        else:
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if link.busy else 0))

    def end_overdue(self, now: float) -> None:
        for fd in [fd for fd, (_, until) in self._links.items() if now >= until]:
            self._close(fd)

    def _close(self, fd: int) -> None:
        link, _ = self._links.pop(fd)
        self._epoll.unregister(fd)
        link.close()

    def end(self, links: Iterable[TcpLink]) -> None:
        """Close all of these and all of ours; waits for a moment for what is on its way."""
        every = [*links, *(link for link, _ in self._links.values())]
        until = time.monotonic() + CLOSE_SECONDS
        late = every
        while (late := [link for link in late if link.busy]) and time.monotonic() < until:
            for link in late:
                try:
                    link.flush()
                except OSError:
                    link.forget_unsent()
            time.sleep(0.001)
        for link in every:
            link.drain(self._waste)
            link.close()
        self._links.clear()
