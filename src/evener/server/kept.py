"""What a script keeps besides the model: the chief gives it, checkpoints hold it, every new life is given it."""

from __future__ import annotations

from collections.abc import Iterable

from evener import errors
from evener.state.manifest import script_complaint
from evener.wire.messages import Goodbye, Push

#: Bytes of it: it travels in the header of a message, beside everything else there.
MOST = 64 << 10


class KeptText:
    """The newest text, and who has to be given it still."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self._owed: set[int] = set()  # workers
        self._chief = -1

    @staticmethod
    def check(push: Push | Goodbye) -> None:
        """Raises ProtocolError for what no checkpoint could hold."""
        if not push.script:
            return
        name = f"worker:{push.identity.worker}"
        if len(push.script) > MOST:
            raise errors.ProtocolError(
                f"the script of {name} keeps {len(push.script):,} bytes, {MOST:,} are possible.",
                fix="keep numbers and settings in it; tensors belong to the model.",
            )
        try:
            complaint = script_complaint(push.script.decode())
        except UnicodeDecodeError:
            complaint = "it is no text"
        if complaint:
            raise errors.ProtocolError(f"what the script of {name} keeps cannot be kept: {complaint}.")

    def take(self, push: Push | Goodbye, here: Iterable[int]) -> None:
        """From the chief; to the others of those who are here, where they are to have it at once."""
        if push.script:
            self.text = push.script.decode()
            if isinstance(push, Push) and push.spread:
                self._owed = set(here) - {push.identity.worker}

    def owed(self, worker: int, *, first: bool, chief: bool) -> bytes:
        """What this answer brings.

        Args:
            first: it begins a life.
            chief: it goes to the chief, who may have become it just now: what it keeps replaces this.
        """
        new = chief and worker != self._chief
        if chief:
            self._chief = worker
        if not first and not new and worker not in self._owed:
            return b""
        self._owed.discard(worker)
        return self.text.encode()
