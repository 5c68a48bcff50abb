"""Every error that evener raises on purpose.

EvenerError
├── ConfigError        an option, a recipe or a cluster that cannot work
├── InputError         data that is missing, damaged or empty
├── BindError          an address that this task cannot listen on
├── CheckpointError    a checkpoint or logdir that cannot be read or written
├── SecurityError      keys that are missing or readable by others, a port open to everyone
├── SessionError       a session used after its end, or a hook that failed
├── NonFinite          a loss or gradient that is NaN or infinite
├── Stalled            nothing moved for longer than the stall timeout
├── TaskFailed         a task of the run ended with an error
│   ├── ServerLost       a ps task is gone: the others go on from the newest checkpoint once it is back
│   │   └── RolledBack     all go back to the newest checkpoint, without a batch
│   └── RunFailed        and so the run did: which task, why, its traceback
└── WireError          what a peer said or did
    ├── Unavailable      it never answered
    ├── PeerGone         it answered before and is gone now
    ├── AuthError        it refused our key, or did not prove its own
    ├── ProtocolError    it does not speak our protocol
    ├── VersionError     it speaks another version of it
    ├── ModelMismatch    it trains another model
    ├── ClusterMismatch  it belongs to another run or cluster
    ├── PushRejected     its gradient has the wrong size
    ├── DuplicateTask    a task with this index is alive already
    ├── Busy             a standing server that works for another client
    └── Fenced           this process was replaced by a newer one

KeyboardInterrupt
└── Preempted          this task was told to leave, and left in order
"""

from __future__ import annotations

#: How a process ends that was told to leave and has left in order.
PREEMPTED = 4
#: How a note begins that says at which step an error came.
CONTEXT = "at "


class EvenerError(Exception):
    """What is wrong, why it is so, and how to mend it.

    Args:
        what: one sentence with the offending value in it.
        why: the rule or the circumstance behind it.
        fix: what the reader can do now.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class ConfigError(EvenerError):
    """An option, a recipe or a cluster that cannot work."""


class InputError(EvenerError):
    """Data that is missing, damaged or empty."""


class BindError(EvenerError):
    """An address that this task cannot listen on."""


class CheckpointError(EvenerError):
    """A checkpoint or logdir that cannot be read or written."""


def not_saved(cause: BaseException) -> CheckpointError:
    """The last checkpoint of a run, without which what it has learned since the one before is lost."""
    return CheckpointError(
        f"the final checkpoint was not saved: {cause}",
        fix="see to its disk; the same command with --logdir goes on from the newest that is there.",
    )


class SecurityError(EvenerError):
    """Keys that are missing or readable by others, or a port that would be open to everyone."""


class SessionError(EvenerError):
    """A session used after its end, or a hook that failed."""


class NonFinite(EvenerError):
    """A loss or gradient that is NaN or infinite; nothing of it was applied."""


NOT_FINITE_FIX = (
    "lower the learning rate, clip the gradient (--clip-norm 1.0), or look at that batch; "
    "--on-nan skip goes on without it."
)


def not_finite(what: str) -> NonFinite:
    """The error of a gradient that was refused."""
    return NonFinite(
        what,
        why="one such gradient would make every parameter NaN; it was not applied.",
        fix=NOT_FINITE_FIX,
    )


class Stalled(EvenerError):
    """Nothing moved for longer than the stall timeout."""


class TaskFailed(EvenerError):
    """A task of the run ended with an error; carries the first traceback."""


class ServerLost(TaskFailed):
    """A ps task is gone, and its shard of the parameters with it."""


class RolledBack(ServerLost):
    """All go back to the newest checkpoint, and on without these leases: what they gave was not finite."""

    def __init__(self, what: str, *, why: str = "", fix: str = "", leases: tuple[int, ...] = ()) -> None:
        super().__init__(what, why=why, fix=fix)
        self.leases = leases


class Preempted(KeyboardInterrupt):
    """This task was told to leave (SIGTERM, SIGHUP) and left in order. Not a failure: others go on."""


class RunFailed(TaskFailed):
    """A run ended because a task failed. `block` is the whole story for a terminal, the first traceback last."""

    def __init__(self, what: str, *, why: str = "", fix: str = "", kind: str = "", block: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.kind = kind  # the name of the error that the task ended with
        self.block = block or str(self)


class WireError(EvenerError):
    """What a peer said or did."""


class Unavailable(WireError):
    """A peer that never answered."""


class PeerGone(WireError):
    """A peer that answered before and is gone now."""


class AuthError(WireError):
    """A peer that refused our key, or did not prove its own."""


class ProtocolError(WireError):
    """A peer that does not speak our protocol."""


class VersionError(WireError):
    """A peer, or a file, of another version."""


class ModelMismatch(WireError):
    """A peer that trains another model."""


class ClusterMismatch(WireError):
    """A peer that belongs to another run or cluster."""


class PushRejected(WireError):
    """A gradient of the wrong size."""


class DuplicateTask(WireError):
    """A task with this index is alive already."""


class Busy(WireError):
    """A standing server that works for another client."""


class Fenced(WireError):
    """This process was replaced by a newer one."""


def take_context(error: BaseException) -> str:
    """Where a run was when the error came, as the session noted it.

    The note is taken off, so that the last line of a traceback is the error itself.
    """
    notes: list[str] = getattr(error, "__notes__", [])
    mine = [note for note in notes if note.startswith(CONTEXT)]
    if mine:
        error.__notes__ = [note for note in notes if note not in mine]
    return "".join(mine[:1]).removeprefix(CONTEXT)
