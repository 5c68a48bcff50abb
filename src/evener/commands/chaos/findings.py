"""What a person, or a program, is told of the schedules that were played."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evener.audit.account import many
from evener.commands.chaos.played import Played, Struck
from evener.commands.chaos.verdict import Check, lost


@dataclass(frozen=True, slots=True)
class Tried:
    """One run and what was found of it."""

    name: str  # "undisturbed", "seed 7"
    played: Played
    ratio: float  # of its time to that of the undisturbed run
    checks: tuple[Check, ...]
    again: str  # the command that plays it once more
    files: str = ""  # where they are, if they were kept

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        played = self.played
        seed = played.schedule.seed if played.schedule.seed >= 0 else None
        return {
            "name": self.name, "seed": seed, "holds": self.holds, "status": played.status,
            "seconds": played.seconds, "ratio": self.ratio, "slow": played.schedule.slow,
            "faults": [_fault(one) for one in played.struck], "missed": [asdict(one) for one in played.missed],
            "lost_updates": lost(played), "checks": [asdict(check) for check in self.checks],
            "result": dict(played.result), "again": self.again, "files": self.files,
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join([self._head(), *(f"    {line}" for line in self._lines())])

    def _head(self) -> str:
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        beside = f", {self.ratio:.2f} x the undisturbed run" if self.played.schedule.seed >= 0 else ""
        return f"{self.name}: {verdict}; {self.played.seconds:.1f} s{beside}"

    def _lines(self) -> Iterator[str]:
        if self.played.schedule.slow:
            yield f"slow: {self.played.schedule.slow}, all along"
        for struck in self.played.struck:
            yield happened(struck)
        for strike in self.played.missed:
            yield f"did not happen: {strike.kind} {strike.task}; the run was over, or the task had ended"
        if undone := lost(self.played):
            yield f"{many(undone, 'update')} lost, which were in no checkpoint"
        for check in self.checks:
            yield check.told if check.holds else f"NOT: {check.told}"
        if not self.holds:
            yield from (f"    | {line}" for line in self.played.said.splitlines())
            yield f"again: {self.again}"
            yield f"its files: {self.files}"


def _fault(struck: Struck) -> Mapping[str, Any]:
    told = {"kind": struck.strike.kind, "task": struck.strike.task, "pid": struck.pid, "seconds": struck.seconds}
    return {**told, "steps": struck.steps, "stopped_seconds": struck.strike.seconds}


def happened(struck: Struck) -> str:
    """
    >>> from evener.commands.chaos.schedule import Strike
    >>> happened(Struck(Strike("stop", "worker:1", True, 0.3, 1.2), 77, 3.0, 41))
    'worker:1 (pid 77) stopped for 1.2 s at 3.0 s, after 41 steps'
    """
    strike = struck.strike
    what = {"kill": "killed (kill -9)", "cut": "cut off: its links to the ps tasks broken"}
    done = what.get(strike.kind, f"stopped for {strike.seconds:g} s")
    steps = many(struck.steps, "update" if strike.task.startswith("ps") else "step")
    return f"{strike.task} (pid {struck.pid}) {done} at {struck.seconds:.1f} s, after {steps}"
