"""When a program tells what it keeps, and what it takes over of what another one has told."""

from __future__ import annotations

import math
from typing import Any

from evener.loop.kept import Kept, states_of, unpacked
from evener.loop.parts import Parts
from evener.loop.passes import Passes
from evener.loop.said import sayable
from evener.settings import Settings

#: Seconds between two times that the chief tells it.
TELL = 1.0


class Keeper:
    """What one program keeps.

    Args:
        told: there is somebody to tell it to: a logdir, or other towers.
    """

    def __init__(self, settings: Settings, *, told: bool) -> None:
        self.kept = Kept()
        self.parts: Parts | None = None
        self.passes: Passes | None = None
        #: Of each scheduler, whether it follows the global step.
        self.inside: list[bool] = []
        self.spread = False  # the other workers are to have it at once
        #: Whether what the program says now counts, and not what was kept.
        self.fresh = settings.hyperparameters == "recipe"
        self._somebody = told
        self._told_at = -math.inf

    def hear(self, script: bytes) -> None:
        """What the chief's program keeps, or kept when a checkpoint was written."""
        if (kept := unpacked(script)) is not None:
            self.kept = kept
            self.restore()

    def restore(self) -> None:
        """Let schedulers and settings be as they were kept."""
        if self.fresh or self.parts is None:
            return
        for scheduler, state in zip(self.parts.schedulers, self.kept.schedulers, strict=False):
            scheduler.load_state_dict({**scheduler.state_dict(), **state})
        for (group, names), settings in zip(_groups(self.parts), self.kept.settings, strict=False):
            group.update({key: value for key, value in settings.items() if key in group and key in names})
        self._catch_up(self.parts)

    def _catch_up(self, parts: Parts) -> None:
        """It was told some updates before those that there are now: schedulers that follow them are behind."""
        version = self.passes.turn.version if self.passes is not None else 0
        behind = max(0, version - self.kept.version) // len(parts.optimizers)
        for scheduler, inside in zip(parts.schedulers, self.kept.inside, strict=False):
            scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]  # steps were taken, elsewhere
            for _ in range(behind if inside else 0):
                type(scheduler).step(scheduler)
        if self.passes is not None and self.kept.inside:
            self.passes.counted = max(version, self.kept.version)

    def packed(self, passes: Passes) -> bytes:
        """As it is now."""
        assert self.parts is not None
        kept = self.kept
        kept.version, kept.passes, kept.ahead = passes.counted, passes.count, passes.more
        kept.glances = passes.glances
        kept.tied = self.parts.tied
        kept.schedulers, kept.inside = states_of(self.parts.schedulers), list(self.inside)
        kept.settings = [
            {key: value for key, value in group.items() if key in names} for group, names in _groups(self.parts)
        ]
        return kept.packed()

    def judged(self) -> None:
        """A validation was judged: the other workers are to hear of it at once."""
        self.spread = True

    def soon(self) -> None:
        """The next step is to tell it."""
        self._told_at = -math.inf

    def due(self, passes: Passes, now: float) -> bytes:
        """What the next step is to tell: from the chief, where it is saved, and not with every step."""
        if not (passes.turn.chief and self._somebody and (self.spread or now - self._told_at >= TELL)):
            return b""
        self._told_at = now
        return self.packed(passes)


def _groups(parts: Parts) -> list[tuple[dict[str, Any], frozenset[str]]]:
    """Each group of all optimizers, and the settings that are kept here; a checkpoint of the optimizer has the others,
    which its steps change, as they were after its last one."""
    return [(group, names) for one in parts.optimizers for names in [sayable(one)] for group in one.param_groups]
