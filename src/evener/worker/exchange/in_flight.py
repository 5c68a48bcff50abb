"""Exchange with parameter servers, for a worker that computes while its last gradient is on its way (--in-flight 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evener.errors import ClusterMismatch
from evener.transport.channel import Memory
from evener.worker.exchange.exchange import Computed, Turn
from evener.worker.exchange.in_hand import InHand


class InFlight:
    """Gives a gradient and goes on with the next batch in hand; the answer is taken when it is there, or is needed.

    Servers see one push of a worker at a time: the next one is sent when the last was answered. So nothing that they
    keep of a life, a link or a seat is new. What is new is that a gradient may be computed on the parameters of the
    answer before the last one, and says so (`Push.version`).

    An answer may come at any moment, so it lands in memory of its own, and comes to the model between two gradients.

    Args:
        hand: not started; it wants the batches of two gradients.
        landing: where answers land.
        parameters: memory of the same size, in which the model lives.
    """

    def __init__(self, hand: InHand, landing: Memory, parameters: Memory) -> None:
        self._hand, self._landing, self._parameters = hand, landing, parameters
        self.arrivals = 0
        self._flying = False  # a gradient was given and not answered
        self._answer = Turn(version=0, lease=-1)  # the newest
        self._due = False  # no turn was made of it so far
        self._landed = True  # the model has what it brought
        self._over: Turn | None = None  # it says that what is computed meanwhile is of no use
        self._on = 0  # version of the parameters on which the gradient in hand is computed
        self._outcome = ("", 0)  # of gradients given, to be told with the next turn: why dropped, staleness

    def start(self) -> Turn:
        self._answer, self._landed = self._hand.start(), False
        if not self._answer.stop and not self._answer.leases:
            raise ClusterMismatch(
                "ps:0 gives this worker one batch at a time, and it was started with --in-flight 2.",
                fix="start all tasks with the same --in-flight.",
            )
        return self._go_on()

    def free(self) -> None:
        if not self._flying:
            return
        answer = self._hand.take()
        self._flying, self._answer, self._due, self._landed = False, answer, True, False
        self._outcome = (answer.rejected or self._outcome[0], answer.staleness)
        if answer.stop or answer.anew:
            self._over = answer

    def newest(self, turn: Turn) -> Turn:
        if self._flying and self._hand.answered():
            self.free()
        return self._go_on() if self._due else turn

    def update(self, computed: Computed) -> Turn:
        self.free()
        over = self._over or self._hand.returned()
        if over is None:
            self._land()  # what is given now may be answered at once
            sent = self._hand.give(computed, self._on)
            self._flying = True
            if not sent or self._hand.empty:
                self.free()
        else:
            self._answer, self._landed = over, False  # the run has ended, or the life that had this batch
        turn = self._go_on()
        (rejected, staleness), self._outcome = self._outcome, ("", 0)
        return replace(turn, rejected=rejected, staleness=staleness)

    def _go_on(self) -> Turn:
        """The turn of a gradient that is begun now."""
        self._land()
        self._due, self._over, self._on = False, None, self._answer.version
        return self._hand.dealt(replace(self._answer, rejected="", staleness=0))

    def _land(self) -> None:
        if not self._landed:
            self._parameters.view[:] = self._landing.view
            self._landed = True
            self.arrivals += 1

    def show(self, what: str) -> int:
        self.free()
        version = self._hand.show(what)
        self._landed = False
        self._land()
        return version

    def judge(self, figures: Mapping[str, float]) -> None:
        self._hand.judge(figures)

    def returned(self) -> Turn | None:
        if (turn := self._hand.returned()) is None:
            return None
        self._flying, self._answer, self._landed = False, turn, False
        return self._go_on()

    def stop(self, reason: str, *, complete: bool = True) -> Turn | None:
        return self._hand.stop(reason, complete=complete)

    def conclude(self) -> None:
        self._hand.conclude()

    def close(self, reason: str = "") -> None:
        self._hand.close(reason)
