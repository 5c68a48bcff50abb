"""A program's gradients, one of which is on its way while the next one is computed (--in-flight 2)."""

from __future__ import annotations

from evener.transport.channel import Memory
from evener.worker.compute.device_memory import DeviceMemory
from evener.worker.exchange.exchange import Computed, Turn
from evener.worker.exchange.servers import Servers


class Flying:
    """What `InFlight` is for a recipe: servers see one push of a worker at a time, and each push says on which
    parameters it was computed. Here the program says when its batches begin and end.

    Args:
        servers: not started.
        landing: where answers land, at any moment.
        parameters: memory of the same size, in which the model lives: answers come there between two gradients.
        memory: the model's own, where it lives on other devices.
    """

    def __init__(self, servers: Servers, landing: Memory, parameters: Memory, memory: DeviceMemory | None) -> None:
        self._servers, self._landing, self._parameters, self._memory = servers, landing, parameters, memory
        self.arrivals = 0  # fillings of the model
        self._flying = False  # a gradient was given and not answered
        self._came: Turn | None = None  # its answer, when it was waited for and not told yet
        self._newest = Turn(version=0, lease=-1)  # whose parameters have come last
        self._landed = True  # the model has them
        self._on = 0  # version of those that it has

    @property
    def count(self) -> int:
        """Gradients on their way."""
        return int(self._flying)

    def start(self) -> Turn:
        """The first parameters."""
        turn = self._servers.start()
        self.land(turn)
        return turn

    def free(self) -> None:
        """Wait for the answer to the gradient on its way. From then on nothing reads where it lies."""
        if self._flying:
            self._flying = False
            self._came = self._newest = self._servers.take()
            self._landed = False

    def update(self, computed: Computed) -> Turn:
        """Send a gradient, after `free`. Returns what became of the one before it, and lets its parameters land."""
        came, self._came = self._came, None
        over = came if came is not None and (came.anew or came.stop) else self._servers.returned()
        on = self._on
        if over is not None:  # the run has ended, or the life that had this batch
            self.land(over)
            return over
        if not self._landed:
            self.land(self._newest)  # what is given now may be answered at once
        self._flying = True
        if not self._servers.give(computed, on):
            self.free()
        return came or self._quiet()

    @property
    def lost(self) -> bool:
        """Whether the gradient before was not taken, as far as that was heard and not told."""
        return self._came is not None and bool(self._came.anew or self._came.rejected)

    @property
    def landed(self) -> bool:
        """Whether the model has what came last."""
        return self._landed and not self._flying

    def settled(self, *, land: bool) -> Turn | None:
        """What became of the gradient on its way, waited for; None: there is none, or it was told.

        Args:
            land: its parameters come to the model; not while a gradient is computed. Those of a new life come in any
                case: its servers know no others, so that a gradient of what the model has could not be sent.
        """
        self.free()
        came, self._came = self._came, None
        if not self._landed and (land or (came is not None and came.anew)):
            self.land(self._newest)
        return came

    def land(self, turn: Turn) -> None:
        """The parameters that came last, with this turn, come to the model."""
        if self._memory is not None:
            self._memory.settle()
        self._parameters.view[:] = self._landing.view
        if self._memory is not None:
            self._memory.fetch()
        self._newest, self._landed, self._on = turn, True, turn.version
        self.arrivals += 1

    def _quiet(self) -> Turn:
        """Nothing is new."""
        turn = self._newest
        return Turn(version=turn.version, lease=-1, chief=turn.chief, dropped=turn.dropped,
                    learning_rate=turn.learning_rate)  # fmt: skip
