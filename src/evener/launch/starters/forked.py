"""Tasks that fork off a `fork_server`, as their launcher sees them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from evener.control.proc import end_session
from evener.launch.starters.fork_server import LONGEST, NEWS, Born, Died, Wanted, encode

#: Seconds that the kernel may take to end a task whose server is gone.
DYING = 5.0
#: Tenths of a second that the server may take to say that a killed task is dead.
SILENT = 20

_news: msgspec.msgpack.Decoder[Born | Died] = msgspec.msgpack.Decoder(Born | Died)


def possible() -> bool:
    """Whether tasks may be forked here. Not where there are GPUs: libraries for them may not survive a fork."""
    if any(map(os.path.exists, ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd"))):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # not Linux, or one that is old or does not let us
        return False
    return True


class Forked:
    """A task that a fork server was asked for, with those methods of `subprocess.Popen` that a launcher uses."""

    def __init__(self, server: ForkServer) -> None:
        self.returncode: int | None = None
        self.killed, self.unborn = False, True
        self._server, self._pid, self._pidfd = server, 0, -1

    @property
    def pid(self) -> int:
        """0 until it is born."""
        self._server.hear()
        return self._pid

    def poll(self) -> int | None:
        self._server.hear()
        return self.returncode

    def kill(self) -> None:
        self.killed = True
        self._server.hear()
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._server.spare()

    def wait(self) -> int:
        """Until it is dead, which somebody has to see to."""
        rounds = 0
        while (code := self.poll()) is None:
            self._server.wait(0.1)
            rounds += 1
            if rounds > SILENT and self.killed:
                self._server.abandon()
        return code

    def born(self, pid: int, pidfd: int) -> None:
        self._pid, self._pidfd, self.unborn = pid, pidfd, False
        if self.killed:
            self.kill()

    def died_with_its_server(self) -> None:
        if self._pidfd >= 0:
            _readable(self._pidfd, DYING)
            end_session(self._pid)  # its number was its own a moment ago
        self.died(-signal.SIGKILL)

    def died(self, status: int) -> None:
        self.returncode = status
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1


class ForkServer:
    """The launcher's end. What it is asked for while it still imports waits in the line to it."""

    def __init__(self, environment: Mapping[str, str], log: int) -> None:
        """`log`: a descriptor; what importing has to say goes there."""
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._environment = environment
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.callback(self._line.close)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "evener.launch.starters.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=environment,
            )  # fmt: skip
            unless_started.pop_all()
        self._tasks: dict[int, Forked] = {}  # those that live, and those not yet born
        self._last = 0

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, name: str, environment: Mapping[str, str], line: int, log: int) -> Forked:
        """Start a task. Raises OSError when the server is gone or cannot be told."""
        changes: dict[str, str | None] = dict.fromkeys(self._environment.keys() - environment.keys())
        changes |= {key: value for key, value in environment.items() if self._environment.get(key) != value}
        self._last += 1
        if len(order := encode(Wanted(self._last, name, changes))) > LONGEST:
            raise OSError(errno.E2BIG, "an environment that changed too much")
        self._line.setblocking(True)
        try:
            socket.send_fds(self._line, [order], [line, log])
        finally:
            self._line.setblocking(False)
        self._tasks[self._last] = task = Forked(self)
        return task

    def hear(self) -> None:
        """Take in what has become of the tasks; never blocks."""
        while self._tasks:
            try:
                data, pidfds, _, _ = socket.recv_fds(self._line, NEWS, 1)
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it ended with orders unread; what it said before is still there, then comes the end
            if not data:
                self._lost()
                return
            match _news.decode(data):
                case Born(number, pid):
                    self._tasks[number].born(pid, *pidfds)
                case Died(number, status):
                    self._tasks.pop(number).died(status)

    def wait(self, seconds: float) -> None:
        """For news."""
        _readable(self._line.fileno(), seconds)

    def abandon(self) -> None:
        """It does not say that a killed task is dead: somebody has stopped it, say. Its end tells as much."""
        self._process.kill()

    def spare(self) -> None:
        """If all tasks were killed, and some before they were born, the server need not go on importing."""
        tasks = self._tasks.values()
        if all(task.killed for task in tasks) and any(task.unborn for task in tasks):
            self._process.kill()

    def _lost(self) -> None:
        """It is gone, and so are its tasks: the kernel kills them when their parent dies."""
        self._process.wait()
        for task in self._tasks.values():
            task.died_with_its_server()
        self._tasks.clear()

    def close(self) -> None:
        """Kills what is left of its tasks."""
        self._process.kill()
        self._process.wait()
        self.hear()
        self._line.close()


def _readable(fd: int, seconds: float) -> None:
    """Wait for it; `select` knows no descriptors above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(1000 * seconds)
