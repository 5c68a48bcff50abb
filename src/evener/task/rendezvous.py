"""How tasks find each other: each ps task publishes the address that it got, everybody asks for all of them.

A restarted ps task may have another address, so whoever loses it asks again. Schedulers plug in here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evener import errors, files
from evener.cluster.cluster import ClusterSpec
from evener.control.control import TaskEnd
from evener.report import Published, Reporter
from evener.state.atomic import atomic_write
from evener.waiting import Waiting

#: Seconds that a task waits for the addresses of the others: their imports may be slow.
START = 300.0
#: Longest address in bytes; a file that has more is none of ours.
LONGEST = 300


class Rendezvous(Protocol):
    """Where ps tasks say where they listen."""

    def publish(self, task: str, address: str) -> None:
        """`task` ("ps:0") listens at `address` from now on."""
        ...

    def addresses(self) -> Sequence[str]:
        """Those of ps:0, ps:1, ... Waits for what is not published yet. Raises TaskFailed when it does not come."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Ports that were chosen beforehand: there is nothing to tell."""

    known: Sequence[str]

    def publish(self, task: str, address: str) -> None: ...

    def addresses(self) -> Sequence[str]:
        return self.known


@dataclass(frozen=True, slots=True)
class LauncherLine:
    """Through the launcher, which tells everybody once it knows them all."""

    control: TaskEnd

    def publish(self, task: str, address: str) -> None:
        self.control.report(Published(task, address))

    def addresses(self) -> Sequence[str]:
        return self.control.addresses(START)


class Directory:
    """A directory that all tasks see, with one file for each ps task: DIR/RUN/ps-0.

    Args:
        task: who asks, "worker:1".
        patience: seconds to wait for an address.
        stop_asked: a reason to wait no longer, once there is one.
    """

    def __init__(  # noqa: PLR0913 - what a wait must know to be told, each once
        self,
        directory: Path,
        run: str,
        ps: int,
        *,
        task: str,
        patience: float,
        report: Reporter,
        stop_asked: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._files = [directory / run / f"ps-{index}" for index in range(ps)]
        self._task, self._patience, self._report = task, patience, report
        self._stop_asked, self._clock, self._sleep = stop_asked, clock, sleep
        try:
            self._files[0].parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.ConfigError(
                f"the rendezvous {directory} cannot be written ({error.strerror}).",
                fix="give all tasks a directory that they share: --rendezvous DIR.",
            ) from error

    def publish(self, task: str, address: str) -> None:
        atomic_write(self._files[int(task.partition(":")[2])], [address.encode() + b"\n"])

    def addresses(self) -> Sequence[str]:
        wait = Waiting(self._task, self._patience, self._report, self._clock, stopped=self._stop_asked)
        while True:
            found = [_read(file) for file in self._files]
            if all(found):
                return found
            absent = ", ".join(f"ps:{index}" for index, address in enumerate(found) if not address)
            wait.still(
                f"{absent} to publish its address in {self._files[0].parent}",
                fix="start it with the same host lists and the same --rendezvous, a directory that both see.",
            )
            self._sleep(0.1)


def _read(file: Path) -> str:
    """The address in a file; nothing where there is none (yet)."""
    try:
        with files.opened(file) as reader:
            text = reader.read(LONGEST + 1).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise errors.ProtocolError(
            f"{file} holds no address: {error.strerror}.", fix="remove it, or choose another --rendezvous."
        ) from error
    if len(text) > LONGEST or not text.startswith(("tcp://", "shared:")):
        raise errors.ProtocolError(
            f"{file} holds no address: {text[:60]!r}.", fix="remove it, or choose another --rendezvous."
        )
    return text


def for_cluster(
    directory: str, cluster: ClusterSpec, fixed: Rendezvous, shared: Callable[[Path], Directory]
) -> Rendezvous:
    """The rendezvous of `evener task`: none is needed where all ports are known.

    Raises:
        ConfigError: a ps task has port 0, and nothing says where to publish what it gets.
    """
    if directory:
        return shared(Path(directory))
    for index, address in enumerate(cluster.ps):
        if not address.port:
            raise errors.ConfigError(
                f"ps:{index} has the address {address}, and nobody would learn which port it gets.",
                why="port 0 is a free one, found when the task starts.",
                fix="add --rendezvous DIR, a directory that all tasks share, or write the port in --ps-hosts.",
            )
    return fixed
