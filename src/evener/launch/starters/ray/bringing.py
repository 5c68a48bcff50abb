"""What the thread of one life does: bring a task to where it can stand, and listen to it until it is over."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import RayActorError, RuntimeEnvSetupError

from evener.control import control
from evener.control.control import Assignment
from evener.errors import ConfigError, EvenerError, ServerLost
from evener.launch.starters.ray.introductions import LEARN, Introductions
from evener.launch.starters.ray.life import RayTask
from evener.launch.starters.ray.told import ActorHere, Heard
from evener.report import Failed, Line, Status

VERSION = version("evener")
#: Seconds until a task is told to wait for room.
ROOM = 5.0
#: Actors that may be lost, one after the other, before one of them has stood; and seconds between two.
TRIES, PAUSE = 20, 1.0
#: How Ray says that an actor's own constructor has failed.
CREATION = "creation task"


@dataclass(frozen=True, slots=True)
class Ground:
    """What the lives of a run have from their starter."""

    actor: Callable[[str], Any]  # a new one for "ps:0"
    missing: Callable[[str], str]  # why there is no room for it
    leave: Callable[[str], None]  # its node is to go away
    seen: Callable[[ActorHere], str]  # where one has come to stand; what people should know of that
    apart: Callable[[], bool]  # what a node's disk holds is lost with it
    introductions: Introductions


class Bringing:
    """One life."""

    def __init__(self, running: RayTask, assignment: Assignment, ground: Ground) -> None:
        self._running, self._assignment, self._ground = running, assignment, ground
        self._task = running.task
        self._actor: Any = None
        self._begun = False

    def __call__(self) -> None:
        """The whole of it."""
        try:
            here = self._placed()
            if trouble := self._ground.seen(here):
                self._running.tell(Line("run", trouble))
            if here.certificate:
                self._ground.introductions.introduce(self._task, self._actor, here.certificate)
            ray.get(self._actor.order.remote(control.framed(self._assignment)))
            self._begun = True
            self._running.stands(here.host, self._actor.order.remote)
            how = self._listen()
        except EvenerError as error:
            failed = Failed(self._task, type(error).__name__, error.what, error.why, error.fix)
            self._running.tell(failed)
            how = "could not begin"
        except Exception as error:  # whatever Ray says of an actor that cannot be, or is no more
            how = self._lost(error)
        self._ground.introductions.gone(self._task, self._actor)
        self._running.over("was killed by SIGKILL" if self._running.killed else how)

    def _placed(self) -> ActorHere:
        """Where its actor has come to stand. One that is lost before it has begun is made anew: it has cost nothing."""
        for left in reversed(range(TRIES)):
            self._actor = self._ground.actor(self._task)
            self._running.stands_as(self._actor)
            try:
                here = self._room(self._actor.here.remote())
            except RayActorError as error:
                if not left or CREATION in str(error) or self._running.killed:
                    raise
                time.sleep(PAUSE)
            else:
                break
        if here.version != VERSION:
            raise ConfigError(
                f"{here.host} has evener {here.version}, this is {VERSION}.",
                why="tasks of two versions may not understand each other.",
                fix="install the same on all nodes, or name it in --runtime-env.",
            )
        self._say(f"stands on {here.host} ({here.address}, node {here.node[:8]})")
        return here

    def _say(self, text: str) -> None:
        """To people; by the line of the task, since whoever shows it is another thread."""
        self._running.tell(Line("run", f"{self._task} {text}"))

    def _room(self, asked: Any) -> ActorHere:
        """Waits for room, and tells so."""
        if not ray.wait([asked], timeout=ROOM)[0]:
            self._running.tell(Status(self._task, "starting", waiting_for="room on the Ray cluster"))
            self._say(f"waits for room on the Ray cluster: {self._ground.missing(self._task)}")
        here: ActorHere = ray.get(asked)
        return here

    def _listen(self) -> str:
        while True:
            heard: Heard = ray.get(self._actor.hear.remote())
            self._running.heard(heard.reports)
            if heard.how is not None:
                if heard.drains:
                    self._ground.leave(self._task)
                with contextlib.suppress(Exception):
                    ray.get(self._actor.close.remote(), timeout=LEARN)
                return heard.how

    def _lost(self, error: Exception) -> str:
        """Its actor is no more, or never was."""
        if self._running.killed:
            return "was killed"
        failed: EvenerError | None = None
        if isinstance(error, RuntimeEnvSetupError):
            failed = ConfigError("Ray cannot bring to the nodes what the run needs.", why=last_line(error))
        elif CREATION in str(error):
            fix = "install the same evener on all nodes: pip install 'evener[ray]'."
            failed = ConfigError("its actor cannot begin.", why=last_line(error), fix=fix)
        elif self._task.startswith("ps:") and self._ground.apart():
            failed = ServerLost(
                f"{self._task} is lost with its node, and with it a part of the parameters.",
                why="its checkpoints lie in a logdir that is a directory of that node alone.",
                fix="give a --logdir that all nodes share.",
            )
        if failed is not None:
            self._running.tell(Failed(self._task, type(failed).__name__, failed.what, failed.why, failed.fix))
        if not self._begun:
            return f"cannot start: {last_line(error)}"
        if isinstance(error, RayActorError):
            return f"is lost with its actor on {self._running.host}"
        return f"is lost: {last_line(error)}"


def last_line(error: Exception) -> str:
    """What Ray says, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:300] if lines else type(error).__name__
