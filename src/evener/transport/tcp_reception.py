"""The door of a port: takes connections while there is room for them, and says who must go when there is none."""

from __future__ import annotations

import contextlib
import errno
import resource
import select
import socket
from collections.abc import Callable, Iterator

from evener.transport import tcp_silence
from evener.transport.tcp_limits import MOST_DESCRIPTORS, Caps, Door, reserve

#: Connections that are taken in one go, so that a flood of them does not keep the peers waiting.
AT_ONCE = 64
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Reception:
    """A socket that listens, watched by the epoll of its server, and the books of who has come by it."""

    def __init__(
        self,
        sock: socket.socket,
        epoll: select.epoll,
        heartbeat: float,
        complain: Callable[[str], None],
        turn_away: Callable[[int, str], None],
    ) -> None:
        """`turn_away` closes the connection of a descriptor, and says why."""
        self._socket, self._epoll, self._heartbeat = sock, epoll, heartbeat
        self._complain, self._turn_away = complain, turn_away
        self._descriptors = raise_descriptors()
        self.door = Door(Caps.of(self._descriptors))
        #: Is the socket not watched, because there are no descriptors? It would be announced again and again.
        self.paused = False
        epoll.register(sock, select.EPOLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    def newcomers(self, now: float) -> Iterator[tuple[socket.socket, str]]:
        """Connections that have come and for which there is room, each ready to be used, and where it came from."""
        for _ in range(AT_ONCE):
            sock = self._accepted()
            if sock is None:
                return
            try:
                address = str(sock.getpeername()[0])
                tcp_silence.prepare(sock, self._heartbeat)
            except OSError:  # it is gone already
                sock.close()
                continue
            if self._has_room(sock, address, now):
                yield sock, address

    def _accepted(self) -> socket.socket | None:
        """The next connection, if there is one and a descriptor for it."""
        while True:
            try:
                return self._socket.accept()[0]
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    self._complain(f"cannot take a connection: {error}")
                    self._epoll.unregister(self._socket)
                    self.paused = True
                    return None
                # else that one has left before we came: take the next

    def _has_room(self, sock: socket.socket, address: str, now: float) -> bool:
        """Enter a connection in the books; another may have to go for it."""
        fd = sock.fileno()
        victim = self.door.come(fd, address, now, full=fd >= self._descriptors - reserve(self._descriptors))
        if victim == fd:
            self._complain(f"refused {address}: there are no descriptors to spare")
            sock.close()
            return False
        if victim is not None:
            self._turn_away(victim, "too many stand at the door who have not said who they are")
        return True

    def resume(self) -> None:
        """Try again: a descriptor may be free."""
        if self.paused:
            self._epoll.register(self._socket, select.EPOLLIN)
            self.paused = False

    def close(self) -> None:
        self._socket.close()


def raise_descriptors() -> int:
    """Ask for as many descriptors as we may have; gives their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft
