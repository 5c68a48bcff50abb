"""How a command ends that did not succeed: what it says to people, what to programs, and its exit code."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from evener import errors

#: Documented in docs/cluster.md.
OK, FAILED, USAGE, FENCED, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, errors.PREEMPTED, 130
#: Errors that the command line itself is to blame for.
WRONG_USAGE = (errors.ConfigError, errors.SecurityError, errors.BindError)


@dataclass(frozen=True, slots=True)
class CommandEnding:
    """Of a command that raised an error."""

    status: int
    text: str  # for people
    kind: str  # what follows is for programs
    what: str
    why: str = ""
    fix: str = ""

    def as_dict(self) -> dict[str, object]:
        error = {"kind": self.kind, "what": self.what, "why": self.why, "fix": self.fix}
        return {"error": error, "status": self.status}


def ending(error: BaseException) -> CommandEnding:
    """Call it where the error is handled: what is not ours is shown with its traceback."""
    name = type(error).__name__
    match error:
        case errors.Preempted():
            return CommandEnding(PREEMPTED, f"\n{error}", name, str(error))
        case KeyboardInterrupt():
            what = str(error) or "interrupted"
            return CommandEnding(INTERRUPTED, f"\n{what}", name, what)
        case errors.RunFailed(kind=kind, block=block):
            status = status_of(getattr(errors, kind, Exception))
            return CommandEnding(status, block, kind, error.what, error.why, error.fix)
        case errors.SessionError():  # a hook of the user failed: its own traceback stands last
            cause = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
            return CommandEnding(FAILED, f"evener: {error}\n\n{cause}".rstrip(), name, error.what, error.why, error.fix)
        case errors.EvenerError():
            return CommandEnding(status_of(type(error)), f"evener: {error}", name, error.what, error.why, error.fix)
    context = errors.take_context(error)
    told = f"{f'failed at {context}' if context else ''}\n{traceback.format_exc()}".lstrip()
    return CommandEnding(FAILED, told, name, str(error), context)


def status_of(kind: type[BaseException]) -> int:
    if issubclass(kind, errors.Fenced):
        return FENCED
    if issubclass(kind, errors.Preempted):
        return PREEMPTED
    return USAGE if issubclass(kind, WRONG_USAGE) else FAILED
