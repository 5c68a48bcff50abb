"""Play one schedule on real processes, and see what becomes of the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evener.audit.account import Account
from evener.commands.account import account
from evener.commands.chaos.cutting import cut
from evener.commands.chaos.played import Played, Struck
from evener.commands.chaos.processes import Brood, Living, brood, send, title
from evener.commands.chaos.remains import Belongings, belongings, drafts
from evener.commands.chaos.schedule import FaultSchedule, Strike
from evener.commands.chaos.steps import Steps
from evener.commands.chaos.training import Rehearsed
from evener.control.interrupts import Interrupts, collected
from evener.control.proc import die_with_parent
from evener.errors import EvenerError
from evener.ledger import path_of

#: Seconds between two looks at the run, and between two at what it holds.
TURN, SURVEY = 0.03, 0.5
#: Seconds for the last processes of a run to go, on a machine that others use too.
PATIENCE = 15.0
SHARED = Path("/dev/shm")  # noqa: S108 - looked at only


@dataclass(frozen=True, slots=True)
class Measure:
    """What the undisturbed run had, of which a schedule names parts; and what a disturbed one may take."""

    seconds: float
    steps: dict[str, int]
    limit: float


class Trial:
    """One run from its command to its last trace."""

    def __init__(self, training: Rehearsed, schedule: FaultSchedule, measure: Measure, place: Path) -> None:
        self._training, self._schedule, self._measure, self._place = training, schedule, measure, place
        self._logdir = place / "run"
        self._steps = Steps(path_of(self._logdir), training.ps)
        self._pending = list(schedule.strikes)
        self._struck: list[Struck] = []
        self._stopped: list[tuple[Living, float]] = []  # until when
        self._held, self._surveyed = Belongings(), 0.0
        self._interrupts = Interrupts()
        self._before = frozenset(map(str, SHARED.glob("*")))  # data that a user keeps there are no remains

    def run(self) -> Played:
        """Start the command, strike, wait for its end; whatever happens, no process is left.

        Raises:
            ConfigError: not on this system.
            KeyboardInterrupt: Ctrl-C or SIGTERM, also where a shell has it ignored, as a run itself would take it.
        """
        with (
            collected(self._interrupts),
            brood() as family,
            (self._place / "out").open("wb") as out,
            (self._place / "err").open("wb") as err,
        ):
            self._began = time.monotonic()
            command = [
                sys.executable,
                "-m",
                "evener",
                *self._training.words(self._logdir, self._schedule.slow),
            ]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - this command has one thread
            )  # fmt: skip
            try:
                status = self._watch(process, family)
                seconds = self._now()
                left = self._settle(process, family) if status is not None else []
            finally:
                family.end()
                process.wait()
        self._turn(0.0)
        return self._played(status, seconds, left)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _turn(self, seconds: float) -> None:
        """Between two looks a person may end it."""
        if self._interrupts.numbers:
            raise KeyboardInterrupt
        time.sleep(seconds)

    # --- while it runs

    def _watch(self, process: subprocess.Popen[bytes], family: Brood) -> int | None:
        while process.poll() is None:
            if self._now() > self._measure.limit:
                return None
            tasks = family.tasks() if self._pending or self._now() - self._surveyed > SURVEY else {}
            self._survey(tasks)
            steps = self._steps.look()
            for strike in [one for one in self._pending if self._due(one, steps[one.task])]:
                if strike.task in tasks and self._strike(strike, tasks):
                    self._pending.remove(strike)
                    pid = tasks[strike.task].pid
                    self._struck.append(Struck(strike, pid, round(self._now(), 2), steps[strike.task]))
            self._let_go()
            self._turn(TURN)
        return process.returncode

    def _due(self, strike: Strike, steps: int) -> bool:
        moment = strike.moment(self._measure.seconds, self._measure.steps)
        return (steps if strike.by_steps else self._now()) >= moment

    def _strike(self, strike: Strike, tasks: dict[str, Living]) -> bool:
        task = tasks[strike.task]
        match strike.kind:
            case "kill":
                return send(task, signal.SIGKILL)
            case "stop":
                if any(task.same(other) for other, _ in self._stopped) or not send(task, signal.SIGSTOP):
                    return False
                self._stopped.append((task, self._now() + strike.seconds))
                return True
        return cut(task, belongings(one.pid for name, one in tasks.items() if name.startswith("ps"))) > 0

    def _let_go(self) -> None:
        for task, until in [one for one in self._stopped if self._now() >= one[1]]:
            send(task, signal.SIGCONT)
            self._stopped.remove((task, until))

    def _survey(self, tasks: dict[str, Living]) -> None:
        if self._now() - self._surveyed > SURVEY:
            self._surveyed = self._now()
            self._held |= belongings(task.pid for task in tasks.values())

    # --- after it

    def _settle(self, process: subprocess.Popen[bytes], family: Brood) -> list[str]:
        """What is left when there was time enough to go."""
        for task, _ in self._stopped:
            send(task, signal.SIGCONT)
        end = self._now() + PATIENCE
        while True:
            family.reap(but=process.pid)
            alive, held = family.alive(), [one for one in self._held.left() if one not in self._before]
            if self._now() > end or not (alive or held):
                break
            self._turn(0.1)
        processes = [f"process {one.pid} ({title(one)[:100]})" for one in alive]
        return [*processes, *held, *drafts(self._logdir)]

    def _played(self, status: int | None, seconds: float, left: list[str]) -> Played:
        found, unread = self._account()
        said = (self._place / "err").read_text(errors="replace").splitlines()[-15:]
        return Played(
            schedule=self._schedule, status=status, limit=self._measure.limit, seconds=round(seconds, 2),
            result=self._result(), account=found, unread=unread, struck=tuple(self._struck),
            missed=tuple(self._pending), left=tuple(left), steps=dict(self._steps.look()), said="\n".join(said),
        )  # fmt: skip

    def _result(self) -> dict[str, Any]:
        """The last line that is a whole object: a script's own last words may follow."""
        for line in reversed((self._place / "out").read_text(errors="replace").splitlines()):
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and ("reason" in value or "error" in value):
                    return value
        return {}

    def _account(self) -> tuple[Account | None, str]:
        try:
            return account(self._logdir), ""
        except EvenerError as error:
            return None, error.what
