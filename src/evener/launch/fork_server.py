"""A process that imports PyTorch once and forks into every task of a run. Linux only.

Importing takes over a second of a core, a fork 20 ms, and its pages are shared. This one is our own because that of
`multiprocessing` runs the user's script again in each task, and speaks pickle.

The fork server has no thread of its own and opens nothing, so that what forks off it is as good as new. It ends with
its launcher, and its tasks end with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Mapping

import msgspec
from setproctitle import setproctitle

from evener.launch.environment import change_environment
from evener.launch.proc import die_with_parent
from evener.launch.task import main
from evener.leaving import leave

#: Most bytes of one message, most of which are the variables that a task's environment has and its server's has not.
LONGEST = 1 << 16
#: How a child ends that could not be made: EX_OSERR of sysexits.h.
NOT_MADE = 71
#: Seconds that the kernel may take to end a task whose server is gone.
DYING = 5.0


class Wanted(msgspec.Struct, frozen=True, tag=True):
    """A task is to be: with two descriptors, of its line and of its log."""

    number: int
    name: str
    changes: dict[str, str | None]  # of the server's environment; None: without this variable
    steps: bool = False  # it has an optimizer


class Born(msgspec.Struct, frozen=True, tag=True):
    """It is: with a descriptor that stands for the process, whatever happens to its number."""

    number: int
    pid: int


class Died(msgspec.Struct, frozen=True, tag=True):
    """Its exit status, or minus the signal that ended it."""

    number: int
    status: int


_encode = msgspec.msgpack.Encoder().encode
_wanted = msgspec.msgpack.Decoder(Wanted)
_news: msgspec.msgpack.Decoder[Born | Died] = msgspec.msgpack.Decoder(Born | Died)


def possible() -> bool:
    """Whether tasks may be forked here. Not where there are GPUs: libraries for them may not survive a fork."""
    return hasattr(os, "pidfd_open") and not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd")))


# --- the launcher's side


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
        while (code := self.poll()) is None:
            self._server.wait(0.1)
        return code

    def born(self, pid: int, pidfd: int) -> None:
        self._pid, self._pidfd, self.unborn = pid, pidfd, False
        if self.killed:
            self.kill()

    def died_with_its_server(self) -> None:
        if self._pidfd >= 0:
            select.select([self._pidfd], [], [], DYING)
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
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "evener.launch.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=environment,
            )  # fmt: skip
        self._tasks: dict[int, Forked] = {}  # those that live, and those not yet born
        self._last = 0

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, name: str, environment: Mapping[str, str], line: int, log: int, *, steps: bool) -> Forked:
        """Start a task; `steps`: it has an optimizer. Raises OSError when the server is gone."""
        changes: dict[str, str | None] = dict.fromkeys(self._environment.keys() - environment.keys())
        changes |= {key: value for key, value in environment.items() if self._environment.get(key) != value}
        self._last += 1
        self._line.setblocking(True)
        socket.send_fds(self._line, [_encode(Wanted(self._last, name, changes, steps))], [line, log])
        self._line.setblocking(False)
        self._tasks[self._last] = task = Forked(self)
        return task

    def hear(self) -> None:
        """Take in what has become of the tasks; never blocks."""
        while self._tasks:
            try:
                data, pidfds, _, _ = socket.recv_fds(self._line, LONGEST, 1)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
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
        select.select([self._line], [], [], seconds)

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
        self._lost()
        self._line.close()


# --- the server's side


def serve(line: socket.socket) -> int | None:
    """Fork for whoever asks. Returns in each child, which is a task now, with the descriptor of its own line.

    Returns None in the server itself, when the launcher has closed the line.
    """
    me = os.getpid()
    children: dict[int, tuple[int, int]] = {}  # pidfd: number, pid
    poll = select.poll()
    poll.register(line, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd in children:
                poll.unregister(fd)
                os.close(fd)
                number, pid = children.pop(fd)
                line.send(_encode(Died(number, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))))
                continue
            data, given, _, _ = socket.recv_fds(line, LONGEST, 2)
            if not data:
                return None
            wanted = _wanted.decode(data)
            if wanted.steps:
                preload("torch._dynamo")  # PyTorch's optimizers need its compiler: 0.9 s of a core
            try:
                pid = _fork()
            except OSError:
                os.write(given[1], traceback.format_exc().encode())
                line.send(_encode(Died(wanted.number, NOT_MADE)))
                pid = -1
            if pid == 0:
                line.close()
                for pidfd in children:
                    os.close(pidfd)
                _become(wanted, given[0], given[1], me)
                return given[0]
            for each in given:
                os.close(each)
            if pid > 0:
                pidfd = os.pidfd_open(pid)
                children[pidfd] = wanted.number, pid
                poll.register(pidfd, select.POLLIN)
                socket.send_fds(line, [_encode(Born(wanted.number, pid))], [pidfd])


def _fork() -> int:
    with warnings.catch_warnings():  # of threads: there is one of NumPy's OpenBLAS, which sees to it itself
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _become(wanted: Wanted, line: int, log: int, parent: int) -> None:
    """Make this fork what a new process would be."""
    die_with_parent()
    if os.getppid() != parent:  # it died before
        os._exit(NOT_MADE)
    os.setsid()
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    change_environment(wanted.changes)
    sys.argv[1:] = [str(line), wanted.name]
    setproctitle(f"evener {wanted.name}")  # for people who look at `ps`
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()  # Python's own generator does so by itself


def preload(*modules: str) -> None:
    """Import what tasks need, once. What is broken there, each task finds by itself and reports."""
    if not all(name in sys.modules for name in modules):
        for name in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # so that no collection in a task touches, and so copies, these pages


if __name__ == "__main__":
    die_with_parent()
    line = socket.socket(fileno=int(sys.argv[1]))
    preload("evener.launch.build", "evener.launch.server", "evener.launch.worker")
    mine = None
    with contextlib.suppress(ConnectionError):
        mine = serve(line)
    leave(main(mine) if mine is not None else 0)
