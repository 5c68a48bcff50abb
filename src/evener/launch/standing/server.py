"""A standing server: it waits for a client, starts the task that the client names, and waits for the next one.

It listens at its own address and speaks to clients only; its task, a process as `launch.run` starts them, listens at
a free port of the same host for the other tasks. What comes over the wire is data: names of recipes, settings, orders.
The server's own settings (keys, how far it trusts the network) win over the client's, and never travel.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import msgspec

from evener import errors, settings as settings_module
from evener.cluster.cluster import Address, Task
from evener.control import control
from evener.control.control import Assignment, MessageStream, Order, Stop, log_of
from evener.launch.standing.allowed import Allowed
from evener.launch.starters.process import Processes, Running, Starter
from evener.launch.starters.remote import pieces
from evener.report import Progress, Status
from evener.transport import user
from evener.transport.channel import Arrived, Closed, Incoming, Listener, wait
from evener.wire import codec
from evener.wire.messages import AnyMessage
from evener.wire.standing import Dismiss, Ping, Pong, Relay, Reserve, Reserved, TaskEnded

VERSION = version("evener")
#: Whose key may give jobs.
CLIENT = "client"


@dataclass(slots=True, eq=False)
class Job:
    """One client's use of the server, from its Reserve to the end of its link and of its task."""

    peer: int  # 0: the client is gone
    recipe: str
    client: str  # "host h0 pid 812"
    since: float
    orders: MessageStream[Order] = field(default_factory=control.orders)
    run: str = ""
    step: int = 0
    running: Running | None = None
    grace: float = 10.0  # seconds that its task has to save and leave
    deadline: float | None = None  # when the task is killed, once it is to end


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the server itself was told."""

    task: Task
    address: Address
    settings: Mapping[str, Any]  # keys, insecure, heartbeat_timeout
    allowed: Allowed = field(default_factory=Allowed)  # what clients may ask for


class StandingServer:
    """Serves one client at a time. `serve` returns when it is told to stop.

    Args:
        say: gets lines for people.
    """

    def __init__(
        self,
        own: ServerSettings,
        listener: Listener,
        *,
        say: Callable[[str], None],
        starter: Starter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own, self._listener, self._say, self._clock = own, listener, say, clock
        self._starter = starter or Processes(tell=say)
        self._job: Job | None = None
        self._later: dict[int, Reserve] = {}  # clients that came while the last one's task was ending
        self._leaving = ""

    def serve(self, stop_asked: Callable[[], list[str]]) -> None:
        """Until `stop_asked` gives a reason. Then the task ends in order; at once when it gives a second one."""
        self._tell_waiting()
        try:
            while not (self._leaving and self._job is None):
                self._turn()
                reasons = stop_asked()
                if reasons and not self._leaving:
                    self._leaving = reasons[0]
                    self._wind_up(f"its server was told to end ({reasons[0]})")
                if len(reasons) > 1 and self._job is not None and self._job.running is not None:
                    self._job.running.kill()
        finally:
            if self._job is not None and self._job.running is not None:
                self._job.running.close()
            self._starter.close()
            self._listener.close()
        self._say(f"{self._own.task}: ended ({self._leaving})")

    def _tell_waiting(self) -> None:
        self._say(f"{self._own.task}: ready; waits for a job at {self._listener.address}")

    # --- one turn

    def _turn(self) -> None:
        running = self._job.running if self._job else None
        for source in wait([self._listener, *([running] if running is not None and running.open else [])], 0.1):
            if source is self._listener:
                for incoming in self._listener.receive():
                    self._hear(incoming)
            elif self._job is not None and source is self._job.running:
                self._relay(self._job, self._job.running)
        if self._job is not None:
            self._look_after(self._job)

    def _hear(self, incoming: Incoming) -> None:
        match incoming:
            case Closed(peer, _):
                self._later.pop(peer, None)
                if self._job is not None and self._job.peer == peer:
                    self._job.peer = 0
                    self._wind_up(f"its client, {self._job.client}, is gone")
            case Arrived(peer, header, _):
                try:
                    self._handle(peer, codec.decode(header))
                except errors.PeerGone:
                    pass  # its `Closed` comes
                except errors.EvenerError as error:
                    self._answer(peer, codec.refusal(error))

    def _handle(self, peer: int, message: AnyMessage) -> None:
        """One message. Raises EvenerError to refuse it."""
        job = self._job
        match message:
            case Ping():
                self._answer(peer, self._pong())
            case Reserve():
                self._check_client(peer, message)
                self._reserve(peer, message)
            case Relay(data) if job is not None and job.peer == peer:
                for order in job.orders.feed(data):
                    self._obey(job, order)
            case Dismiss() if job is not None and job.peer == peer:
                if job.running is not None:
                    job.running.kill()
            case _:
                raise errors.ProtocolError(f"a standing server was sent a {type(message).__name__}.")

    def _answer(self, peer: int, message: AnyMessage) -> None:
        with contextlib.suppress(errors.PeerGone):
            self._listener.send(peer, codec.encode(message))

    def _pong(self) -> Pong:
        job, task = self._job, str(self._own.task)
        if job is None:
            return Pong(task, VERSION, True)
        return Pong(task, VERSION, True, job.run, job.recipe, job.step, [], self._busy_with(job))

    def _busy_with(self, job: Job) -> str:
        return f"busy with {job.recipe} since {self._clock() - job.since:.0f} s, started from {job.client}"

    # --- clients

    def _check_client(self, peer: int, reserve: Reserve) -> None:
        mine = self._own.task
        proven = user(self._listener, peer)
        if proven not in ("", CLIENT):
            raise errors.AuthError(
                f"this key may act as {proven.replace('-', ':')}, not as a client of standing servers.",
                fix="use the key pair `client` that `evener keys new` made.",
            )
        if reserve.task != str(mine):
            raise errors.ClusterMismatch(f"this is {mine}, not {reserve.task}.", fix="give both the same host lists.")
        if reserve.evener != VERSION:
            raise errors.VersionError(
                f"the client runs evener {reserve.evener}, {mine} runs {VERSION}.",
                fix="install the same evener everywhere.",
            )
        self._own.allowed.check(reserve.recipe)

    def _reserve(self, peer: int, reserve: Reserve) -> None:
        if self._leaving:
            raise errors.Unavailable(f"{self._own.task} is ending.", why=f"it was told so ({self._leaving}).")
        if self._job is not None and self._job.peer:
            raise errors.Busy(
                f"{self._own.task} is {self._busy_with(self._job)}.",
                why="a standing server works for one client at a time.",
                fix="wait for that run, or stop it there.",
            )
        if self._job is not None:  # its client is gone and its task ends within seconds
            self._later[peer] = reserve
            return
        self._listener.admit(peer, [])
        self._job = Job(peer, reserve.recipe, f"host {reserve.host} pid {reserve.pid}", self._clock())
        self._say(f"{self._own.task}: works for {self._job.client}: {reserve.recipe}")
        self._answer(peer, Reserved(socket.gethostname(), os.getcwd()))

    def _obey(self, job: Job, order: Order) -> None:
        if not isinstance(order, Assignment):
            if job.running is not None:
                job.running.order(order)
            return
        if job.running is not None or job.deadline is not None:
            raise errors.ProtocolError(f"{self._own.task} was told to start while its task runs.")
        assignment = self._made_ours(order)
        try:
            log_of(assignment).parent.mkdir(parents=True, exist_ok=True)
            job.running = self._starter.start(assignment)
        except OSError as error:
            raise errors.ConfigError(
                f"{self._own.task} cannot write {log_of(assignment)} ({error.strerror}).",
                why=f"the logdir is a directory of {socket.gethostname()}; a relative one lies below {os.getcwd()}.",
                fix="choose another --logdir.",
            ) from error
        job.run, job.step, job.grace = order.run, 0, float(assignment.settings.get("grace", job.grace))
        self._say(f"{self._own.task}: started run {job.run}, log in {job.running.log}")

    def _made_ours(self, order: Assignment) -> Assignment:
        """The assignment with this server's own settings, checked."""
        task = self._own.task
        if (order.job, order.index) != (task.job, task.index):
            raise errors.ClusterMismatch(f"this is {task}, not {order.job}:{order.index}.")
        # What a client names is read by this machine: the one that says when it goes away is its owner's to name.
        told = {**order.settings, "preemption_notice": "", **self._own.settings}
        if told.get("script"):
            told["script"] = self._own.allowed.check_script(str(told["script"]))
        else:
            self._own.allowed.check(str(told.get("recipe")))
        told["typed_recipes"] = True
        hosts = list(told.get("ps_hosts") or ())
        if task.job == "ps" and task.index < len(hosts):
            hosts[task.index] = str(Address(self._own.address.host, 0))
        told["ps_hosts"] = tuple(hosts)
        if not settings_module.make(told).logdir:
            raise errors.ConfigError("the job names no logdir.")
        told["logdir"] = os.path.abspath(told["logdir"])  # the recipe's code may change the current directory
        self._own.allowed.check_logdir(told["logdir"])
        return msgspec.structs.replace(order, settings=told)

    # --- the task

    def _relay(self, job: Job, running: Running) -> None:
        for report in running.reports():
            if isinstance(report, Progress):
                job.step = report.global_step
            elif isinstance(report, Status):
                job.step = max(job.step, report.step)
            for piece in pieces(control.framed(report)):
                if job.peer:
                    self._answer(job.peer, Relay(piece))

    def _wind_up(self, reason: str) -> None:
        """Let the task save and leave; it is killed if it does not."""
        job = self._job
        if job is None or job.deadline is not None:
            return
        job.deadline = self._clock() + job.grace
        if job.running is not None:
            self._say(f"{self._own.task}: {reason}; its task ends")
            job.running.order(Stop(reason))

    def _look_after(self, job: Job) -> None:
        if job.running is not None:
            if job.deadline is not None and self._clock() > job.deadline and job.running.ended() is None:
                job.running.kill()
            if job.running.open or (how := job.running.ended()) is None:
                return
            job.running.close()
            job.running = None
            self._say(f"{self._own.task}: run {job.run} {how or 'is over'}, at step {job.step}")
            if job.peer:
                self._answer(
                    job.peer, TaskEnded(f"was ended: its server got {self._leaving}" if self._leaving else how)
                )
        if job.deadline is not None:
            self._let_go(job)

    def _let_go(self, job: Job) -> None:
        if job.peer:
            self._listener.disconnect(job.peer)
        self._job = None
        if self._leaving:
            return
        self._tell_waiting()
        for peer, reserve in list(self._later.items()):
            del self._later[peer]
            try:
                self._reserve(peer, reserve)
            except errors.EvenerError as error:
                self._answer(peer, codec.refusal(error))
