"""Nobody waits: every gradient is one update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from evener.errors import ConfigError
from evener.policy.events import Apply, Decision, Drained, Event, Expired, Joined, Left, Pushed, Refreshed, Release
from evener.policy.mode import Terms, check_options, option


@dataclass(frozen=True, slots=True)
class Async:
    """Every gradient is an update, and nobody waits.

    Raises:
        ConfigError: an option that cannot work.
    """

    name: ClassVar[str] = "async"
    about: ClassVar[str] = "every gradient is applied as it comes; nobody waits"

    in_flight: int = option(
        1, "gradients that a worker has under way; with 2 it computes one while the last is applied; default 1",
        metavar="1|2", least=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)
        if self.in_flight > 2:
            raise ConfigError(
                f"in_flight={self.in_flight} cannot work.",
                why="a worker computes one gradient while one other travels; more would only be later.",
                fix="use --in-flight 2, or 1 (default).",
            )

    def check(self, workers: int) -> None:
        """Any number of workers will do."""

    def terms(self, workers: int) -> Terms:
        return Terms(in_flight=self.in_flight)

    def start(self, version: int, workers: int, *, ending: bool = False, least: int = 1) -> Asynchronous:
        return Asynchronous(version)

    def told(self, workers: int, batch_size: int) -> list[str]:
        if self.in_flight == 1:
            return []
        late = f"{workers - 1} to {2 * workers - 1}"
        return [f"a worker computes its next gradient while the last one travels: mean staleness grows from {late}"]


class Asynchronous:
    """Apply every push at once and release its worker with the result.

    The price of never waiting is staleness: while one worker computes, the others move the parameters, so its
    gradient is applied to parameters that it has not seen. How old it may be is not limited; see `Bounded`.

    Args:
        version: updates decided before this run began, as a checkpoint tells.

    >>> policy = Asynchronous()
    >>> policy.on(Joined(0)), policy.on(Pushed(0, version=0, handle=7))
    ([Release(worker=0)], [Apply(handles=(7,)), Release(worker=0)])
    """

    def __init__(self, version: int = 0) -> None:
        self.version = version
        self._live: set[int] = set()  # all of them compute, always

    def on(self, event: Event) -> list[Decision]:
        """Answer one event."""
        match event:
            case Joined(worker):
                assert worker not in self._live, f"worker {worker} joined twice"
                self._live.add(worker)
                return [Release(worker)]
            case Pushed(worker, _, handle):
                assert worker in self._live, f"worker {worker} pushed but was not released"
                self.version += 1
                return [Apply((handle,)), Release(worker)]
            case Left(worker):
                assert worker in self._live, f"worker {worker} left but was not here"
                self._live.remove(worker)
                return []
            case Refreshed() | Drained() | Expired():
                return []

    def dooms(self, version: int) -> bool:
        """No gradient is too old."""
        return False

    def waiting_for(self) -> str:
        """Nothing is ever awaited: the next push is the next update."""
        return ""
