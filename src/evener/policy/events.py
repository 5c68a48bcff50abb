"""What a policy reads and what it answers.

A policy is ``on(event) -> list[Decision]``: no clock, thread, log, random number or configuration inside,
so the same events give the same decisions in the server, in the simulator, in a property test and in a replay.
Handles are integers that the shard gave to the gradients it holds; tensors never come here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is ready for its first parameters. A worker that returns is `Left` before it is `Joined` again."""

    worker: int


@dataclass(frozen=True, slots=True)
class Pushed:
    """A worker gave a gradient computed on the parameters of `version`; it now waits to be released."""

    worker: int
    version: int
    handle: int
    group: int = 0  # which of several optimizers it is for: an update is of one of them
    samples: int = 0  # that it is of


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is gone: it said so, its link broke, or its time ran out."""

    worker: int
    ended: bool = False  # its own loop has come to its end: it is not awaited


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A worker that had no batch is given one, and the newest parameters with it."""

    worker: int


@dataclass(frozen=True, slots=True)
class Drained:
    """No batch of this epoch is left to give, and every live worker is idle or has pushed and waits."""

    idle: frozenset[int]  # those that wait for a batch; the others wait for an update


@dataclass(frozen=True, slots=True)
class Expired:
    """The time that a `Wait` asked for is over."""

    token: int


@dataclass(frozen=True, slots=True)
class Apply:
    """Average these gradients and take one optimizer step; the version moves by one."""

    handles: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget this gradient; the reason is for people."""

    handle: int
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Send this worker the newest parameters, so that it computes again."""

    worker: int


@dataclass(frozen=True, slots=True)
class Recall:
    """What this worker computes now will be dropped for certain: its batches go to others at once."""

    worker: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Tell me by `Expired` when so much time is over. Only the newest token counts."""

    token: int
    seconds: float


Event = Joined | Pushed | Left | Refreshed | Drained | Expired
Decision = Apply | Drop | Release | Recall | Wait


class Policy(Protocol):
    """The object that decides a mode.

    One event never gives two `Apply`. Order of decisions: `Drop`, `Apply`, `Drop` of what the update made worthless,
    `Recall` and `Release`, ascending by worker, `Wait`.
    """

    #: Updates decided so far; a gradient's staleness is this number at its `Apply` minus its own version.
    version: int

    def on(self, event: Event) -> list[Decision]:
        """Answer one event. Decisions are to be carried out in the order given."""
        ...

    def dooms(self, version: int) -> bool:
        """Whether a gradient computed on the parameters of this version will be dropped for its age."""
        ...

    def waiting_for(self) -> str:
        """One sentence for people: what must happen before the next update. Empty when nothing is awaited."""
        ...
