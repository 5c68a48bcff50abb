"""The process of a standing server: `evener server`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evener import transport
from evener.cluster.environment import Found, explain
from evener.cluster.private import keyed
from evener.control.interrupts import STOPPING
from evener.launch.standing.allowed import Allowed
from evener.launch.standing.server import ServerSettings, StandingServer
from evener.settings import Settings
from evener.transport import keys


def stand(found: Found, settings: Settings, allowed: Allowed, say: Callable[[str], None]) -> None:
    """Be a standing server in this process, until SIGTERM or Ctrl-C.

    Raises:
        BindError: the address of this task is taken, or not of this machine.
        SecurityError: other machines would reach it, and there are no keys.
    """
    task, address = found.task, found.cluster.address(found.task)
    settings = keyed(replace(settings, ps=len(found.cluster.ps), workers=len(found.cluster.worker)), [address])
    mine = keys.load(settings.keys, str(task)) if settings.keys else None
    listener = transport.listen(
        "tcp", f"tcp://{address}", keys=mine, insecure=settings.insecure, heartbeat=settings.heartbeat_timeout
    )
    given: dict[str, Any] = {"insecure": settings.insecure, "heartbeat_timeout": settings.heartbeat_timeout}
    given["keys"] = str(Path(settings.keys).resolve()) if settings.keys else ""
    asked: list[str] = []

    def ask(number: int, _frame: object) -> None:
        asked.append(signal.Signals(number).name)

    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup has its way
            signal.signal(number, ask)
    for line in explain(found).splitlines():
        say(line)
    say(f"{task}: takes {allowed.told()}")
    StandingServer(ServerSettings(task, address, given, allowed), listener, say=say).serve(lambda: asked)
