"""Between which bounds the numbers of a run lie. Above them nothing is wrong in principle, and no machine can do it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evener.errors import ConfigError

if TYPE_CHECKING:
    from evener.settings import Settings

#: Integers: the least and the most; None may be given where it is among the optional.
INTEGERS: dict[str, tuple[int, int]] = {
    "ps": (0, 256), "workers": (1, 4096), "batch_size": (1, 1 << 24), "seed": (0, 2**63 - 1), "threads": (1, 1024),
    "keep": (1, 10**9), "log_every": (1, 10**12), "max_restarts": (0, 10**6), "num_gpus": (0, 1024),
    "towers": (0, 1024), "pipeline_stages": (1, 256), "batch_quantum": (1, 1 << 20), "min_workers": (0, 4096),
}  # fmt: skip
OPTIONAL_INTEGERS: dict[str, tuple[int, int]] = {
    "train_steps": (0, 10**15),
    "save_checkpoint_steps": (1, 10**15), "eval_every": (1, 10**15), "eval_batch_size": (1, 1 << 24),
    "microbatches": (1, 1 << 24), "resume_step": (0, 10**15), "batches_per_step": (1, 1024),
}  # fmt: skip
#: Numbers above 0, and the most.
NUMBERS: dict[str, float] = {
    "save_summary_secs": 1e9, "stall_timeout": 1e9, "heartbeat_timeout": 1e6, "grace": 1e6,
}  # fmt: skip
OPTIONAL_NUMBERS: dict[str, float] = {
    "save_checkpoint_secs": 1e9, "epochs": 1e12, "refuse_norm": math.inf, "spike": math.inf,
}  # fmt: skip


def check_numbers(settings: Settings) -> None:
    """Raises ConfigError for the first that lies outside."""
    for name, (least, most) in (INTEGERS | OPTIONAL_INTEGERS).items():
        value = getattr(settings, name)
        if value is None and name in OPTIONAL_INTEGERS:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r} cannot work.", fix=f"{name} must be an integer >= {least}.")
        if value > most:
            raise ConfigError(f"{name}={_short(value)} cannot work.", fix=f"{name} must be an integer <= {most}.")
    for name, limit in (NUMBERS | OPTIONAL_NUMBERS).items():
        value = getattr(settings, name)
        if value is None and name in OPTIONAL_NUMBERS:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0 or math.isinf(value):
            raise ConfigError(f"{name}={value!r} cannot work.", fix=f"{name} must be a number > 0.")
        if value > limit:
            raise ConfigError(f"{name}={_short(value)} cannot work.", fix=f"{name} must be a number <= {limit:g}.")
    if settings.heartbeat_timeout < 1:
        raise ConfigError(
            f"heartbeat_timeout={settings.heartbeat_timeout!r} cannot work.",
            why="a busy machine is silent for a moment now and then.",
            fix="heartbeat_timeout must be a number >= 1.",
        )


def _short(value: float) -> str:
    """A number of a hundred digits is no help in a message."""
    text = str(value)
    return text if len(text) < 24 else f"{text[:8]}... ({len(text)} digits)"
