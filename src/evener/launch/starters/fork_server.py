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
import sys
import traceback
import warnings
from collections.abc import Iterable

import msgspec
from setproctitle import setproctitle

from evener.cluster.environment import change_environment
from evener.control.proc import die_with_parent, end_session
from evener.control.told import LEAVE
from evener.leaving import leave
from evener.task.main import main

#: Most bytes of one message: variables that a task's environment has and its server's has not; and of one answer.
LONGEST, NEWS = 1 << 16, 1 << 10
#: How a child ends that could not be made: EX_OSERR of sysexits.h.
NOT_MADE = 71


class Wanted(msgspec.Struct, frozen=True, tag=True):
    """A task is to be: with two descriptors, of its line and of its log."""

    number: int
    name: str
    changes: dict[str, str | None]  # of the server's environment; None: without this variable


class Born(msgspec.Struct, frozen=True, tag=True):
    """It is: with a descriptor that stands for the process, whatever happens to its number."""

    number: int
    pid: int


class Died(msgspec.Struct, frozen=True, tag=True):
    """Its exit status, or minus the signal that ended it."""

    number: int
    status: int


encode = msgspec.msgpack.Encoder().encode
_wanted = msgspec.msgpack.Decoder(Wanted)


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
                end_session(pid)  # before anybody has waited for it: the number is its own still
                _tell(line, Died(number, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
                continue
            if (order := _order(line)) is None:
                _end(pid for _, pid in children.values())
                return None
            data, given = order
            wanted = _wanted.decode(data)
            if (pid := _fork(log=given[1])) == 0:
                line.close()
                for pidfd in children:
                    os.close(pidfd)
                _become(wanted, given[0], given[1], me)
                return given[0]
            for each in given:
                os.close(each)
            if (pidfd := _pidfd(pid)) < 0:
                _tell(line, Died(wanted.number, NOT_MADE))
                continue
            children[pidfd] = wanted.number, pid
            poll.register(pidfd, select.POLLIN)
            _tell(line, Born(wanted.number, pid), pidfd)


def _order(line: socket.socket) -> tuple[bytes, list[int]] | None:
    """What the launcher wants, with descriptors; None when it is gone."""
    try:
        data, given, _, _ = socket.recv_fds(line, LONGEST, 2)
    except ConnectionError:  # it died before it had read all that it was told
        return None
    return (data, given) if data else None


def _tell(line: socket.socket, news: Born | Died, *given: int) -> None:
    """That the launcher is gone shows when the next order is looked for."""
    with contextlib.suppress(ConnectionError):
        socket.send_fds(line, [encode(news)], given)


def _end(pids: Iterable[int]) -> None:
    """Kill tasks, and what is left in their sessions."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        end_session(pid)


def _fork(log: int) -> int:
    """The number of the child, 0 in the child itself; -1 if the system makes none, and its log says why."""
    try:
        with warnings.catch_warnings():  # of threads: there is one of NumPy's OpenBLAS, which sees to it itself
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except OSError:
        with contextlib.suppress(OSError):
            os.write(log, traceback.format_exc().encode())
        return -1


def _pidfd(pid: int) -> int:
    """A descriptor for a child; -1 if there is no child, or no descriptor left and therefore no child any more."""
    if pid < 0:
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return -1


def _become(wanted: Wanted, line: int, log: int, parent: int) -> None:
    """Make this fork what a new process would be."""
    die_with_parent()
    if os.getppid() != parent:  # it died before
        os._exit(NOT_MADE)
    os.setsid()
    for number in LEAVE:
        signal.signal(number, signal.SIG_DFL)  # until the task listens itself
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEAVE)
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher ends the run in order
    # Not ignored: what comes to a task in its first microseconds would be lost, where it waits now.
    signal.pthread_sigmask(signal.SIG_BLOCK, LEAVE)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started the launcher may have had it ignored
    line = socket.socket(fileno=int(sys.argv[1]))
    preload("evener.task.build", "evener.task.server", "evener.task.worker")
    die_with_parent(signal.SIGCONT)  # if it is stopped when the launcher dies, it has tasks to end yet
    mine = serve(line)
    leave(main(mine) if mine is not None else 0)
