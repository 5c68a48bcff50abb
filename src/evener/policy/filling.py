"""Lockstep by samples: an update is the mean over so many samples, however they were shared out."""

from __future__ import annotations

from evener.errors import ConfigError
from evener.policy.events import (
    Apply,
    Decision,
    Drained,
    Drop,
    Event,
    Expired,
    Joined,
    Left,
    Pushed,
    Refreshed,
    Release,
)
from evener.policy.members import names


class Filling:
    """Average the gradients of exactly G samples of one version, take one step, go on.

    Whoever has pushed is released at once: at the same version while the round lacks samples, so that the part of one
    who has died is computed by the others in the same round. Who gives out the samples must give out exactly G a
    round, else workers would compute what the round has no room for; it lets those wait for whom nothing is left.
    So nobody's work is dropped for being slow.

    Args:
        samples: G, of one update.
        version: updates decided before this run began, as a checkpoint tells.

    Raises:
        ConfigError: samples is not an integer, or below 1.

    >>> policy = Filling(3)
    >>> policy.on(Joined(0)), policy.on(Pushed(0, 0, handle=7, samples=2)), policy.on(Pushed(0, 0, 8, samples=1))
    ([Release(worker=0)], [Release(worker=0)], [Apply(handles=(7, 8)), Release(worker=0)])
    """

    def __init__(self, samples: int, *, version: int = 0) -> None:
        if type(samples) is not int or samples < 1:  # True would pass isinstance
            raise ConfigError(
                f"an update of {samples!r} samples cannot work.", why="it is the mean over that many.",
                fix="use a whole number from 1.",
            )  # fmt: skip
        self.samples = samples
        self.version = version
        self.held_samples = 0
        self._held: dict[int, tuple[int, int]] = {}  # handle -> worker, samples; all computed at `version`
        self._live: set[int] = set()

    def on(self, event: Event) -> list[Decision]:
        """Answer one event."""
        match event:
            case Joined(worker):
                assert worker not in self._live, f"worker {worker} joined twice"
                self._live.add(worker)
                return [Release(worker)]
            case Pushed(worker, version, handle) if version < self.version:
                return [Drop(handle, f"computed at version {version}, now {self.version}"), Release(worker)]
            case Pushed(worker, version, handle, _, samples):
                assert worker in self._live, f"worker {worker} pushed but has not joined"
                assert version == self.version, f"worker {worker} pushed version {version}, now {self.version}"
                assert samples > 0, f"worker {worker} pushed a gradient of no samples"
                self._held[handle] = (worker, samples)
                self.held_samples += samples
                return [*self._update(), Release(worker)]
            case Left(worker):
                return self._leave(worker)
            case Refreshed() | Drained() | Expired():
                return []

    def dooms(self, version: int) -> bool:
        """Whether the round of this version is over."""
        return version < self.version

    def waiting_for(self) -> str:
        """Say how many samples the next update lacks, and who is here to compute them."""
        givers = {worker for worker, _ in self._held.values()}
        holds = f"holds {self.held_samples} ({names(givers)})" if givers else "holds none"
        here = "" if self._live else ", and no worker is here: start one"
        return f"update {self.version + 1} needs {self.samples} sample{'' if self.samples == 1 else 's'}, {holds}{here}"

    def _update(self) -> list[Decision]:
        if self.held_samples < self.samples:
            return []
        assert self.held_samples == self.samples, f"{self.held_samples} samples were given out for {self.samples}"
        handles = tuple(self._held)
        self._held.clear()
        self.held_samples = 0
        self.version += 1
        return [Apply(handles)]

    def _leave(self, worker: int) -> list[Decision]:
        """Its samples went back to the pool when it left, also those of gradients that are held."""
        assert worker in self._live, f"worker {worker} left but was not here"
        self._live.remove(worker)
        orphans = [handle for handle, (owner, _) in self._held.items() if owner == worker]
        for handle in orphans:
            self.held_samples -= self._held.pop(handle)[1]
        return [Drop(handle, "its worker left before the update") for handle in orphans]
