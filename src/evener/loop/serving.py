"""A program in a ps task: from `prepare` on it serves, until the run is over."""

from __future__ import annotations

from typing import NoReturn

from evener.loop.parts import Parts
from evener.loop.remote import check_for_servers
from evener.task.build import Built
from evener.task.script import Joining, Over
from evener.task.server import run_server


def serve(joining: Joining, parts: Parts, built: Built) -> NoReturn:
    """Raises Over when the run has ended, and what `run_server` raises."""
    settings = joining.settings
    check_for_servers(parts.optimizers, settings)

    def again() -> Built:
        return built  # values as the program made them: nothing here has changed them

    run_server(
        joining.index, built, settings, run=joining.run, rendezvous=joining.rendezvous,
        stop_asked=joining.stop_asked, report=joining.report, leave_asked=joining.leave_asked, again=again,
    )  # fmt: skip
    raise Over(0)
