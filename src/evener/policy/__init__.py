"""The update rules: when gradients become an update, and when a worker may compute again.

Policies are pure (`events`), so one object serves the server, the simulator, a property test and a replay.
`leases` and `members` beside them are pure in the same way: which batch is whose, and who may speak as which worker.
"""

from __future__ import annotations

from evener.policy.asynchronous import Async
from evener.policy.bounded import Bounded
from evener.policy.collecting import Rennala, Ringmaster, Softsync
from evener.policy.gathering import Quorum
from evener.policy.mode import Mode
from evener.policy.synchronous import Sync

__all__ = ["MODES"]

#: By name, in the order of help and documents.
MODES: dict[str, type[Mode]] = {
    mode.name: mode for mode in (Async, Sync, Bounded, Rennala, Ringmaster, Softsync, Quorum)
}
