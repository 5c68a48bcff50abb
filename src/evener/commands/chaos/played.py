"""What was seen of one run: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evener.audit.account import Account
from evener.commands.chaos.schedule import FaultSchedule, Strike


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that happened."""

    strike: Strike
    pid: int
    seconds: float  # since the command began
    steps: int  # that the task had made: updates of a ps task


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One run, disturbed or not."""

    schedule: FaultSchedule
    status: int | None  # None: it did not end within its limit, and was killed
    limit: float
    seconds: float
    result: Mapping[str, Any] = field(default_factory=dict)  # as --json says it
    account: Account | None = None
    unread: str = ""  # why there is no account
    struck: tuple[Struck, ...] = ()
    missed: tuple[Strike, ...] = ()  # the run was over before
    left: tuple[str, ...] = ()  # behind
    steps: Mapping[str, int] = field(default_factory=dict)
    said: str = ""  # its last words
