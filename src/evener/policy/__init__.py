"""The update rules: when gradients become an update, and when a worker may compute again.

Policies are pure (`events`), so one object serves the server, the simulator, a property test and a replay.
`leases` and `members` beside them are pure in the same way: which batch is whose, and who may speak as which worker.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from evener.errors import ConfigError
from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import Bounded
from evener.policy.events import Policy
from evener.policy.synchronous import Synchronous

__all__ = ["policy_for"]


def policy_for(  # noqa: PLR0913 - the union of what the modes can be told; each reads its own
    mode: str,
    *,
    replicas_to_aggregate: int,
    accumulate: bool,
    elastic: bool,
    staleness: int,
    version: int,
    workers: int | None = None,
) -> Policy:
    """Make the policy of a mode; what a mode does not use is not looked at.

    Raises:
        ConfigError: there is no such mode, or a setting of it cannot work.

    >>> policy = policy_for(
    ...     "bounded", replicas_to_aggregate=2, accumulate=False, elastic=False, staleness=3, version=0)
    >>> policy.staleness
    3
    """
    modes: dict[str, Callable[[], Policy]] = {
        "async": lambda: Asynchronous(version),
        "sync": lambda: Synchronous(
            replicas_to_aggregate, accumulate=accumulate, elastic=elastic, version=version, workers=workers
        ),
        "bounded": lambda: Bounded(staleness, version=version),
    }
    if mode not in modes:
        near = get_close_matches(mode, modes, n=1)
        raise ConfigError(
            f"unknown mode {mode!r}{f'; did you mean {near[0]!r}?' if near else '.'}",
            why="a mode says when gradients become an update.",
            fix=f"use one of: {', '.join(modes)}.",
        )
    return modes[mode]()
