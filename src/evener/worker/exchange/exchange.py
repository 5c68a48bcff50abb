"""The seam between the training loop and whoever owns the parameters: gradients in, parameters out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

    from evener.data.dataset import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Leave to compute: which batch, on which parameters, and what became of the last gradient."""

    version: int  # global step of the parameters that the model holds now
    lease: int  # the batch; -1 when the run ends
    more: Sequence[int] = ()  # further batches of the same gradient
    count: int = 0  # the batch is so many samples from the `lease`-th on; 0: `lease` is the number of one
    ahead: Sequence[int] = ()  # those of the next turns, in their order, as far as they are known
    stop: str = ""  # why the run ends, when it does
    chief: bool = False
    rejected: str = ""  # why the last gradient was dropped, when it was
    staleness: int = 0  # of the last gradient
    dropped: int = 0  # gradients dropped so far, of all workers
    learning_rate: float = 0.0
    failed: bool = False  # `stop` is another task's failure
    #: To a program with a loop of its own: the leases that came into its hand with this turn; whether all that it had
    #: before are gone, with a life that has ended; and what the chief's program keeps, where that is news.
    leases: Sequence[int] = ()
    anew: bool = False
    script: bytes = b""

    @property
    def batches(self) -> list[int]:
        """Those of the next gradient."""
        return [self.lease, *self.more]


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What is known of a gradient besides its numbers."""

    loss: float  # nan, of a program with a loop of its own: not known
    examples: int
    seconds: float  # of computing
    #: Trained parameters without a gradient: autograd gave them None, so an optimizer leaves them alone.
    unused: Collection[str] = ()
    own: Own | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What a worker says of a gradient that has several batches in hand, or a loop of its own."""

    leases: Sequence[int]  # the batches that it was computed on, as far as they have numbers
    want: int = 1  # leases in hand
    loop: bool = True  # its own loop: a loss that is nan is not known
    group: int = 0  # which of its optimizers
    settings: bytes = b""  # that optimizer's, where they have changed
    script: bytes = b""  # what the program keeps, from the chief
    spread: bool = False  # for the other workers too


@dataclass(frozen=True, slots=True)
class OneOf:
    """One batch of those of a gradient."""

    number: int = 0
    of: int = 1


ONLY = OneOf()


class Computes(Protocol):
    """A model and its gradients, wherever they are computed."""

    model: nn.Module
    #: What people should know of the model's behaviour; whoever tells it takes it out.
    notes: list[str]

    def begin(self, batch: Batch, lease: int, which: OneOf = ONLY) -> float:
        """Forward and backward of one batch; returns its loss. The gradients are the parameters' `grad`.

        Args:
            which: of a gradient that is the mean over several batches, which are computed one after the other.
        """
        ...

    def collect(self, arrival: int = 0) -> Collection[str]:
        """Bring the gradients, as hooks have left them, to where the exchange finds them.

        Args:
            arrival: `Exchange.arrivals` of the parameters that they were computed on.

        Returns:
            The trained parameters that have none.
        """
        ...

    def arrived(self, arrival: int) -> None:
        """The exchange has just filled the parameters."""
        ...


@runtime_checkable
class Shrinks(Protocol):
    """An exchange that gives batches of so many samples, and fewer where these are too many."""

    def too_big(self) -> Turn:
        """The batch of the last turn does not fit into this worker's memory: it goes to others, and a smaller one
        comes."""
        ...


@runtime_checkable
class Flies(Protocol):
    """An exchange whose answers may come while a gradient is computed."""

    def newest(self, turn: Turn) -> Turn:
        """Before a gradient is begun: the turn with the newest parameters that have come."""
        ...

    def free(self) -> None:
        """Before a gradient is brought to where the exchange finds it: return when the last one is not read there any
        more. The model stays as it is."""
        ...


class Exchange(Protocol):
    """Owns, or reaches, the parameters. The model's tensors are views of memory that it fills."""

    @property
    def arrivals(self) -> int:
        """How often other processes have filled the model's tensors.

        0: this process owns the parameters, so what the model or a hook makes of them is what is trained.
        """
        ...

    def start(self) -> Turn:
        """The first parameters and the first batch."""
        ...

    def update(self, computed: Computed) -> Turn:
        """Give the gradient that lies in the flat buffer; return when this worker may compute again.

        Raises:
            NonFinite: the gradient holds NaN or infinity; it was not applied. Where ps tasks own the parameters, the
                run has failed for all workers then, and the turn says so (`failed`).
            WireError: the owner of the parameters is gone or refuses.
        """
        ...

    def show(self, what: str) -> int:
        """Fill the model's tensors with "parameters", "averages" or the last "gradients"; returns their version.

        Whoever asked for something else must ask for "parameters" again before the next batch.
        """
        ...

    def judge(self, figures: Mapping[str, float]) -> None:
        """Tell whoever owns the schedule what a validation found."""
        ...

    def returned(self) -> Turn | None:
        """A turn that came without an update: the links broke while something was shown, and were made anew."""
        ...

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        """Ask that the whole run ends; the next `Turn` says so, or the one returned does at once.

        `complete` False: it was cut short (Ctrl-C), so nobody evaluates.
        """
        ...

    def conclude(self) -> None:
        """The run has ended as it should, and is validated next: what was reached is saved before."""
        ...

    def close(self, reason: str = "") -> None:
        """Leave. An empty reason is a normal end."""
        ...
