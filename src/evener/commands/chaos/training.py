"""The training that is played, as words of a command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A recipe as `evener train` takes it, or a script as `evener launch` does."""

    target: str
    options: tuple[str, ...]  # of evener
    program: tuple[str, ...]  # words of the script's own
    script: bool
    ps: int
    workers: int  # or towers
    slow: bool = False  # it says itself who is slow

    @property
    def tasks(self) -> list[str]:
        return [f"ps:{i}" for i in range(self.ps)] + [f"worker:{i}" for i in range(self.workers)]

    def words(self, logdir: Path, slow: str = "") -> list[str]:
        """What stands after `evener`."""
        mine = [*self.options, "--logdir", str(logdir), "--json", *(["--slow", slow] if slow else [])]
        return ["launch", *mine, self.target, *self.program] if self.script else ["train", self.target, *mine]

    def again(self, words: list[str]) -> list[str]:
        """The command that plays it, with these options of `evener chaos`."""
        own = ["--", *self.program] if self.program else []
        return ["evener", "chaos", *words, self.target, *self.options, *own]
