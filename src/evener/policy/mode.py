"""What a mode is: one frozen object with its options, its policy, and what people and servers have to know of it.

A new mode is a module with such a class, its tests, and one line in `policy/__init__`: command line, help,
`evener.run`, servers and launcher read the rest from the object.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from evener.errors import ConfigError
from evener.policy.events import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a mode asks of the workers that it is given: servers and launchers look here, not at its name."""

    gradients: int | None = 1  # of one update; None: from update to update it may be another number
    fewest: int = 1  # live workers without which there is no update
    held: int = 1  # gradients that a server may hold at once, each a copy of its parameters
    late: bool = True  # a gradient may be applied to newer parameters than it was computed on
    drops: bool = False  # some gradients are dropped for their age: nobody has batches in hand that others could use
    exact: bool = True  # what is given out is used by whoever gives it: no more than the run still needs
    together: bool = False  # all go on at the same time
    needs_all: bool = False  # a worker that hangs is waited for, aloud, and not replaced
    in_flight: int = 1  # gradients that a worker has under way: the one it computes, and one that is not answered
    several_optimizers: bool = True  # updates may be of one of several optimizers in turn

    @property
    def ahead(self) -> bool:
        """Whether a worker may know its next batches: none of its gradients is dropped for its age."""
        return self.exact and not self.drops


class Mode(Protocol):
    """When gradients become an update. Implementations are frozen dataclasses; each field is an `option`."""

    #: As on the command line.
    name: ClassVar[str]
    #: One sentence for help and documents.
    about: ClassVar[str]

    def __hash__(self) -> int: ...

    def check(self, workers: int) -> None:
        """Raises ConfigError if no update could ever be made with so many workers."""
        ...

    def terms(self, workers: int) -> Terms:
        """What it asks of so many workers."""
        ...

    def start(self, version: int, workers: int, *, ending: bool = False, least: int = 1) -> Policy:
        """The policy of a run of so many workers that goes on from `version`.

        Args:
            ending: workers have loops of their own, which may end one by one.
            least: where an elastic mode averages whoever lives, an update is of so many at least.
        """
        ...

    def told(self, workers: int, batch_size: int) -> list[str]:
        """What people should know at the start."""
        ...


def option(default: Any, text: str, *, metavar: str = "", least: float = 0, kind: type = int) -> Any:
    """A field of a mode.

    Args:
        default: where nobody says it; None may mean that it follows from the number of workers.
        text: one line of help.
        metavar: how its value is called there; empty for a switch.
        least: the lowest that can work.
        kind: int, float or bool.
    """
    return field(default=default, metadata={"text": text, "metavar": metavar, "least": least, "kind": kind})


def check_options(mode: Mode) -> None:
    """Refuse values that can never work, for the `__post_init__` of a mode. Raises ConfigError."""
    for entry in fields(mode):  # type: ignore[arg-type]  # a Protocol cannot say that it is a dataclass
        value, kind = getattr(mode, entry.name), entry.metadata["kind"]
        if value is None and entry.default is None:
            continue
        if kind is bool:
            right, what = isinstance(value, bool), "True or False"
        else:
            right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
            right = right and entry.metadata["least"] <= value <= MOST
            what = f"{'an integer' if kind is int else 'a number'} >= {entry.metadata['least']}"
            if isinstance(value, int) and not isinstance(value, bool) and value > MOST:
                value, what = "a number of so many digits", f"at most {MOST}"
        if not right:
            raise ConfigError(f"{entry.name}={value!r} cannot work.", fix=f"{entry.name} must be {what}.")


#: No cluster has so many workers, and no worker falls so far behind.
MOST = 10**9
