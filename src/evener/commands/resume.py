"""`--resume-step`: a run goes on from an older checkpoint than its newest. Nothing is deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def resume_from(directory: Path, step: int, tell: Callable[[str], None]) -> None:
    """Set aside the checkpoints that are newer than this one, once it is known to be whole.

    Args:
        directory: of the checkpoints of a logdir.

    Raises:
        CheckpointError: another run uses the logdir, there is no such checkpoint, or it is damaged.
    """
    from evener.errors import CheckpointError
    from evener.state.checkpoint import Store, load
    from evener.state.leftovers import set_aside

    store = Store(directory, tell=tell)
    try:
        steps = store.steps()
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"--resume-step {step}: there is no such checkpoint in {directory}.",
                fix=f"name one of those that are there: {there}.",
            )
        load(store.path(step))
        for newer in steps:
            if newer > step:
                target = set_aside(store.path(newer), "aside")
                tell(f"--resume-step {step}: {store.path(newer).name} is set aside as {target.name}")
    finally:
        store.close()
