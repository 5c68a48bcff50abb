"""One life of a task, on a node of a Ray cluster: the actor that starts its process, and speaks for it.

The process is started as on any machine. It ends with its actor, by whatever death: of the actor, of its node, or of
the launcher, whose actors Ray ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from importlib.metadata import version

import msgspec

from evener.control import control
from evener.control.control import Assignment, log_of
from evener.control.told import LEFT
from evener.launch.starters.process import Processes, Running
from evener.launch.starters.ray.keyring import Keyring
from evener.launch.starters.ray.told import ActorHere, Heard, Start, same, shares
from evener.report import AnyReport, Line, Progress
from evener.transport.channel import wait

#: Seconds between two looks at whether a node is to go away, and at whether a process is dead whose line is closed.
DRAIN_LOOK, END_LOOK = 2.0, 0.02
#: Seconds that `hear` waits for something to tell, and for more of what tasks tell twice a second.
PATIENCE, GATHER = 20.0, 1.0


class TaskHost:
    """The actor. All its methods are coroutines: Ray begins them in the order of the calls, one at a time.

    Args:
        task: "ps:0".
        where: the address of its node and Ray's name of it.
        drains: whether that node is to go away.
    """

    def __init__(
        self, task: str, start: Start, where: Callable[[], tuple[str, str]], drains: Callable[[str], bool]
    ) -> None:
        self._task, self._start, self._drains = task, start, drains
        self._address, self._node = where()
        self._keyring = Keyring(task.replace(":", "-")) if start.keyed else None
        self._said: list[AnyReport] = []
        self._starter = Processes(tell=lambda text: self._said.append(Line(task, text)))
        self._running: Running | None = None
        self._orders = control.orders()
        self._draining = False
        self._answered = 0.0  # when `hear` did
        self._looks: asyncio.Task[None] | None = None

    async def here(self) -> ActorHere:
        """Where it stands. The first call waits in Ray until there is room for it."""
        certificate = self._keyring.certificate if self._keyring else ""
        return ActorHere(
            socket.gethostname(), self._address, self._node, version("evener"), certificate, shares(self._start)
        )

    async def trust(self, certificates: dict[str, str]) -> None:
        """Others that have come to stand somewhere, or elsewhere than before."""
        if self._keyring:
            self._keyring.trust(certificates)

    async def order(self, data: bytes) -> None:
        """Orders, as they stand in a stream. The first is its assignment."""
        for order in self._orders.feed(data):
            if not isinstance(order, Assignment):
                if self._running is not None:
                    self._running.order(order)
            elif self._running is None:
                self._begin(order)

    def _begin(self, assignment: Assignment) -> None:
        assignment = self._made_ours(assignment)
        log_of(assignment).parent.mkdir(parents=True, exist_ok=True)
        self._running = self._starter.start(assignment)
        self._looks = asyncio.get_running_loop().create_task(self._look_for_drains())

    def _made_ours(self, assignment: Assignment) -> Assignment:
        """With the address of this node, and its keys."""
        told = dict(assignment.settings)
        if same(self._start):
            os.chdir(self._start.directory)
        else:  # Ray has put us where what it has shipped lies
            told.update(self._start.shipped)
        if self._keyring:
            told["keys"] = str(self._keyring.directory)
        if assignment.job == "ps":
            hosts = list(told.get("ps_hosts") or [""] * told["ps"])
            hosts[assignment.index] = f"{self._address}:0"
            told["ps_hosts"] = tuple(hosts)
        return msgspec.structs.replace(assignment, settings=told)

    async def _look_for_drains(self) -> None:
        while not self._draining:
            await asyncio.sleep(DRAIN_LOOK)
            self._draining = await asyncio.to_thread(self._drains, self._node)
        self._said.append(Line(self._task, "its node is to go away: it leaves"))
        running = self._running
        while running is not None and not running.pid:  # it is not born yet
            await asyncio.sleep(END_LOOK)
        if running is not None and running.ended() is None:
            os.kill(running.pid, signal.SIGTERM)

    async def hear(self) -> Heard:
        """What its task has told since the last call; waits for something."""
        running, time = self._running, asyncio.get_running_loop().time
        assert running is not None, "it was ordered to begin before"
        reports: list[AnyReport] = []
        until = time() + PATIENCE
        while running.open and time() < until:
            await asyncio.to_thread(wait, [running], 0.25)
            if (told := self._told(running)) and not reports:
                until = self._answered + GATHER
            reports += told
            if not all(isinstance(report, Progress) for report in told):
                break
        reports += self._told(running)
        self._answered, how = time(), None
        while not running.open and (how := running.ended()) is None:
            await asyncio.sleep(END_LOOK)
        if how and self._draining:  # it had not come to hear signals yet, perhaps: there was nothing to lose
            how = LEFT
        return Heard(b"".join(map(control.framed, reports)), how, self._draining)

    def _told(self, running: Running) -> list[AnyReport]:
        said, self._said = self._said, []
        return [*said, *running.reports()]

    async def end(self) -> None:
        """End its process at once."""
        if self._running is not None:
            self._running.kill()

    async def close(self) -> None:
        """Leave nothing on this node."""
        if self._running is not None:
            self._running.close()
        self._starter.close()
        if self._keyring:
            self._keyring.close()
