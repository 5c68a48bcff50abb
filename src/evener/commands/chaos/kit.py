"""Play a training undisturbed, then by schedules, and judge each."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evener.commands.chaos.cutting import missing
from evener.commands.chaos.findings import Tried
from evener.commands.chaos.play import Measure, Trial
from evener.commands.chaos.played import Played
from evener.commands.chaos.schedule import KINDS, FaultSchedule, draw
from evener.commands.chaos.training import Rehearsed
from evener.commands.chaos.verdict import checks
from evener.errors import ConfigError, RunFailed

#: Seconds that the undisturbed run may take where nobody says; and how many times that, and at least, the others may.
LONGEST, TIMES, LEAST = 3600.0, 10.0, 60.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person asks of the kit."""

    seed: int = 7
    schedules: int = 5
    faults: tuple[str, ...] = ()  # empty: all that there can be
    limit: float | None = None  # seconds
    tolerance: float | None = None

    def words(self, seed: int) -> list[str]:
        """The options that play one schedule again."""
        given = {"limit": self.limit, "tolerance": self.tolerance}
        more = [word for name, value in given.items() if value is not None for word in (f"--{name}", f"{value:g}")]
        return ["--seed", str(seed), "--schedules", "1", "--faults", ",".join(self.faults), *more]


def rehearse(training: Rehearsed, wishes: Wishes, tell: Callable[[str], None]) -> list[Tried]:
    """The undisturbed run first, then one for each seed from `wishes.seed` on.

    Raises:
        ConfigError: such faults cannot be, or not with this training.
        RunFailed: it fails undisturbed.
    """
    kinds, left_out = possible(training, wishes.faults)
    wishes = Wishes(wishes.seed, wishes.schedules, tuple(kinds), wishes.limit, wishes.tolerance)
    for line in left_out:
        tell(line)
    first = _tried(training, wishes, FaultSchedule(-1), None)
    beside = first.played
    if beside.status != 0:
        raise _refused(beside, first.files)
    found = [first]
    tell(str(first))
    for seed in range(wishes.seed, wishes.seed + wishes.schedules):
        found.append(_tried(training, wishes, draw(seed, training.tasks, kinds), beside))
        tell(str(found[-1]))
    return found


def possible(training: Rehearsed, asked: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The kinds of faults to play, and lines about those that are left out.

    Raises:
        ConfigError: one that was asked for by name cannot be.
    """
    if unknown := [kind for kind in asked if kind not in KINDS]:
        raise ConfigError(f"--faults names {unknown[0]!r}.", fix=f"there are: {', '.join(KINDS)}.")
    if len(training.tasks) < 2:
        raise ConfigError(
            "a run of one process survives nothing.",
            why="who dies is replaced by other tasks of the run, and there are none.",
            fix="give --ps 1 --workers 2, or --towers 2.",
        )
    why = {}
    if training.slow:
        why["slow"] = "the command has a --slow of its own"
    if not training.ps:
        why["cut"] = "towers have no links to ps tasks"
    elif told := missing():
        why["cut"] = told
    for kind in asked:
        if kind in why:
            raise ConfigError(f"the fault {kind!r} cannot be.", why=f"{why[kind]}.", fix="leave it out of --faults.")
    kinds = [kind for kind in KINDS if kind in (asked or KINDS) and kind not in why]
    return kinds, [f"the fault {kind!r} is left out: {told}" for kind, told in why.items() if not asked]


def _tried(training: Rehearsed, wishes: Wishes, schedule: FaultSchedule, beside: Played | None) -> Tried:
    """Play it in a directory of its own, which stays if something did not hold."""
    place = Path(tempfile.mkdtemp(prefix="evener-chaos-"))
    limit = wishes.limit or (LONGEST if beside is None else max(LEAST, TIMES * beside.seconds))
    measure = Measure(beside.seconds if beside else 0.0, dict(beside.steps) if beside else {}, limit)
    keep = False
    try:
        played = Trial(training, schedule, measure, place).run()
        seed = wishes.seed if beside is None else schedule.seed
        tried = Tried(
            "undisturbed" if beside is None else f"seed {seed}", played,
            round(played.seconds / (beside or played).seconds, 3),
            tuple(checks(played, beside or played, wishes.tolerance)),
            shlex.join(training.again(wishes.words(seed))), str(place),
        )  # fmt: skip
        keep = not tried.holds
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    return tried if keep else Tried(tried.name, tried.played, tried.ratio, tried.checks, tried.again)


def _refused(played: Played, files: str) -> RunFailed:
    """The training fails without any fault."""
    if played.status is None:
        what = f"the undisturbed run did not end within {played.limit:.0f} s."
        why = f"its last words and logs lie in {files}."
        fix = "let it make fewer steps (--train-steps), or give --limit SECONDS."
        return RunFailed(what, why=why, fix=fix, block=f"evener: {what}\n  why: {why}\n  fix: {fix}")
    error = dict(played.result.get("error") or {})
    return RunFailed(
        f"the undisturbed run ended with status {played.status}: {error.get('what', 'see above')}",
        why=str(error.get("why", "")), fix=str(error.get("fix", "")), kind=str(error.get("kind", "")),
        block=f"evener: the training fails undisturbed, with status {played.status}:\n{played.said}",
    )  # fmt: skip
