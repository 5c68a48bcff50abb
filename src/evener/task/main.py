"""One task of a run: told by its launcher who it is, over the socket it inherited.

Forked by `fork_server`; or, where that is not possible, started as ``python -P -m evener.task.main FD JOB:INDEX``, the
second argument for people who look at `ps`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from functools import partial

from setproctitle import setproctitle

from evener import chaos, errors
from evener.cluster.environment import chaos_plan
from evener.control.control import Assignment, TaskEnd, log_of
from evener.control.notice import noticed
from evener.control.proc import die_with_parent, guard
from evener.control.told import Told, told_to_leave
from evener.leaving import leave
from evener.report import Failed, Leaves, Line
from evener.settings import Settings
from evener.task.rendezvous import START, LauncherLine
from evener.view.printed import passed_on

#: Seconds to leave, for who is not told otherwise.
GRACE = 10.0


def main(line: int) -> int:
    """The whole life of a task. `line`: a descriptor, of the socket to its launcher."""
    # A recipe may import what lies where the run was started. Last: a types.py there must not come before Python's own,
    # which is why tasks are started by `python -P`.
    with contextlib.suppress(OSError):  # it may be gone
        sys.path.append(os.getcwd())
    control = TaskEnd(line)
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends the run in order
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    assignment = control.next(START)
    assert isinstance(assignment, Assignment)
    task = f"{assignment.job}:{assignment.index}"
    try:
        chaos.arm(chaos_plan(), task, assignment.life)
        told = _told(assignment, control)
        notice = str(assignment.settings.get("preemption_notice", ""))
        tell, log = (lambda text: control.offer(Line(task, text))), str(log_of(assignment))
        with (
            passed_on(tell, clock=time.monotonic, rest=log),
            told_to_leave(told, grace=float(assignment.settings.get("grace", GRACE))),
            noticed(notice, partial(_leaving, control, told, task), tell),
        ):
            run(assignment, control, told)
    except errors.Preempted as left:
        control.report(Line(task, str(left)))
        return errors.PREEMPTED
    except BaseException as error:
        control.report(failure(task, error))
        with contextlib.suppress(OSError):  # into the log, whose disk may be full
            traceback.print_exc()
        return 1
    return 0


def _told(assignment: Assignment, control: TaskEnd) -> Told:
    """What a SIGTERM to this task alone does."""
    task = f"{assignment.job}:{assignment.index}"
    if assignment.settings.get("pipeline_stages", 1) > 1:
        return Told(task, notice=lambda: control.offer(Leaves(task)))  # the launcher lets all stages end together
    alone = assignment.job == "worker" and bool(assignment.settings.get("ps"))
    return Told(task, raises=alone)


def _leaving(control: TaskEnd, told: Told, task: str, notice: str) -> None:
    """This machine goes away: the launcher ends the run if it is all here, and starts nothing again then."""
    control.report(Leaves(task, machine=True))
    told.announce(notice)


def run(assignment: Assignment, control: TaskEnd, told: Told) -> None:
    """Do what was assigned. The heavy imports happen here, after the launcher's line is up."""
    from evener.devices import prepare_process
    from evener.settings import make
    from evener.task.build import build

    settings = make(assignment.settings)
    prepare_process(settings.threads, serves=assignment.job == "ps")
    if settings.script:
        return run_program(assignment, settings, control, told)
    built = build(settings)
    rendezvous = LauncherLine(control)
    if settings.way == "towers":
        from evener.task.tower import run_tower

        run_tower(
            assignment.index, built, settings, addresses=rendezvous.addresses, report=control.report,
            stop_asked=lambda: control.stop_asked() or told.reason(),
        )  # fmt: skip
    elif assignment.job == "ps":
        from evener.task.server import run_server

        run_server(
            assignment.index, built, settings, run=assignment.run, rendezvous=rendezvous,
            stop_asked=control.stop_asked, report=control.report, leave_asked=told.reason,
        )  # fmt: skip
    elif settings.pipeline_stages > 1:
        from evener.task.stage import run_stage

        run_stage(
            assignment.index, built, settings,
            addresses=lambda: control.addresses(START), stop_asked=control.stop_asked, report=control.report,
        )  # fmt: skip
    else:
        from evener.task.worker import run_worker

        run_worker(assignment.index, built, settings, run=assignment.run, rendezvous=rendezvous, report=control.report)


def run_program(assignment: Assignment, settings: Settings, control: TaskEnd, told: Told) -> None:
    """The same for a program with a loop of its own."""
    from evener.task.script import Joining, run_script
    from evener.task.tower import tower_here

    joining = Joining(
        job=assignment.job, index=assignment.index, settings=settings, run=assignment.run, report=control.report,
        rendezvous=LauncherLine(control), stop_asked=control.stop_asked, leave_asked=told.reason,
    )  # fmt: skip
    if settings.way == "towers":
        joining.stop_asked = lambda: control.stop_asked() or told.reason()
        joining.tower = tower_here(
            assignment.index, settings, addresses=lambda: control.addresses(START),
            stop_asked=joining.stop_asked, report=control.report,
        )  # fmt: skip
    run_script(joining)


def failure(task: str, error: BaseException) -> Failed:
    """An error as a report: one of ours says what, why and fix; another's is shown with its traceback."""
    kind = type(error).__name__
    context = errors.take_context(error)
    if isinstance(error, errors.EvenerError):
        cause = error.__cause__
        shown = "".join(traceback.format_exception(cause)) if isinstance(error, errors.SessionError) and cause else ""
        return Failed(task, kind, error.what, error.why, error.fix, shown, context)
    return Failed(task, kind, str(error), traceback="".join(traceback.format_exception(error)), context=context)


def guarded(line: int) -> None:
    """Let a process wait for the launcher's death in our stead. Before there is any thread, and PyTorch."""
    task, launcher = os.getpid(), os.getppid()
    if not hasattr(os, "pidfd_open") or os.fork() != 0:
        return
    os.close(line)  # whose end tells the launcher that the task has ended
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the task sees to these
    setproctitle(f"evener guard of {sys.argv[2]}")
    guard(task, launcher)


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # the system makes no more processes
        guarded(int(sys.argv[1]))
    leave(main(int(sys.argv[1])))
