"""Limits of a gradient: the same for a recipe and for the command line."""

from __future__ import annotations

import math

from evener.errors import ConfigError


def check_clipping(clip_norm: object, clip_value: object) -> None:
    """Refuse limits of a gradient that cannot work. Raises ConfigError."""
    for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf
        ):
            raise ConfigError(f"{name}={limit!r} cannot work.", fix=f"{name} must be a number > 0.")
    if clip_norm is not None and clip_value is not None:
        raise ConfigError(
            f"both clip_norm={clip_norm} and clip_value={clip_value} are given.",
            why="a gradient is clipped in one way: which comes first would be a matter of taste.",
            fix="give one of them.",
        )
