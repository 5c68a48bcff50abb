"""The seam between a program's loop and whoever owns the parameters: a step of one optimizer in, a turn out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evener.worker.exchange.exchange import Turn

PAST = (
    "warning: the first step was taken without a batch of the loader that prepare returned. Iterate over that one: "
    "batches of another are neither shared out among the workers nor counted"
)


@dataclass(frozen=True, slots=True)
class Supply:
    """What a program's loader gives."""

    length: int = 0  # batches in an epoch; 0: they have no numbers
    size: int = 1  # samples in a batch, as far as that is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`optimizer.step()` was called."""

    group: int  # which optimizer's
    really: Callable[[], Any]  # what the optimizer itself does
    closure: Callable[[], Any] | None
    leases: Sequence[int]  # batches since the last step of any optimizer
    want: int  # leases in hand
    sizes: Sequence[int] = ()  # samples of each, where leases are stretches of them
    loss: float  # nan: the program has not logged it
    seconds: float  # since the last one was answered
    script: bytes = b""  # what the program keeps, where it is to be told
    spread: bool = False


class Past:
    """Notices a program that has gone past the loader that is shared out, at its first step; its others may be of
    further optimizers."""

    def __init__(self, supply: Supply, tell: Callable[[str], None]) -> None:
        self._tell, self._stepped = tell, not supply.length

    def look(self, step: Step) -> None:
        if not self._stepped and not step.leases:
            self._tell(PAST)
        self._stepped = True


class Owner(Protocol):
    """Owns the parameters, or reaches them."""

    #: Whether the optimizer's own `step` is what changes the parameters, here.
    here: bool

    @property
    def under_way(self) -> int:
        """Steps of this program whose update its parameters do not have yet."""
        ...

    def start(self, want: int) -> Turn:
        """The first parameters, the first batches."""
        ...

    def step(self, step: Step) -> tuple[Any, Turn]:
        """Make the update that this step is; what the optimizer's step returns, and what there is now."""
        ...

    def draw(self, want: int, *, unused: Sequence[int] = (), wait: bool = False) -> Turn:
        """See `Servers.draw`."""
        ...

    def settled(self, *, land: bool) -> Turn | None:
        """What has come of a step that was not waited for; it is waited for now. None: there is none.

        Args:
            land: its parameters come to the model; not while a gradient may be under way.
        """
        ...

    def stop(self, reason: str, *, complete: bool = False) -> None:
        """End the run early; `complete`: as it should end, since the program says so."""
        ...

    def close(self, reason: str = "", script: bytes = b"") -> None:
        """Leave. An empty reason is a normal end. `script`: what the program keeps, at its end."""
        ...
