"""The one training loop, whoever owns the parameters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from evener import chaos
from evener.data.batches import Numbered
from evener.data.prefetch import Feed, Prefetch
from evener.errors import CONTEXT, EvenerError, SessionError, TaskFailed
from evener.recipes.recipe import Recipe
from evener.report import Evaluated, Line, Reporter
from evener.session.hooks import Hook, StepResult, acts
from evener.session.watch import Watch
from evener.settings import Settings
from evener.slow import slowed
from evener.worker.compute.memory import is_out_of_memory, relieve
from evener.worker.exchange.exchange import ONLY, Computed, Computes, Exchange, Flies, OneOf, Shrinks, Turn

log = logging.getLogger(__name__)

#: Seconds after which a person wants to know what a worker is busy with.
LONG_DATA, LONG_GRADIENT, LONG_HOOK = 2.0, 10.0, 2.0


class Session:
    """One worker's run: start or resume, step, stop, close.

    Args:
        task: this worker's name, "worker:0".
        exchange: who owns the parameters.
        towers: the model and its gradients.
        batches: lease -> batch.
        hooks: in the order in which they are called.
        feed: how a batch comes to the model, if the model is elsewhere.
    """

    def __init__(  # noqa: PLR0913 - the parts of a worker, each once
        self,
        task: str,
        exchange: Exchange,
        towers: Computes,
        batches: Numbered,
        hooks: Sequence[Hook],
        *,
        recipe: Recipe,
        settings: Settings,
        report: Reporter,
        clock: Callable[[], float],
        feed: Feed | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.task = task
        self.exchange = exchange
        self._flies = exchange if isinstance(exchange, Flies) else None
        self.towers = towers
        self.batches = batches
        self.recipe = recipe
        self.settings = settings
        self.report = report
        self.local_step = 0
        self.turn = Turn(version=0, lease=-1)
        self.evaluations: list[Evaluated] = []
        self._hooks = list(hooks)
        self._acting: dict[str, list[tuple[Hook, str]]] = {}  # moment -> those that do something then, in words
        self._prefetch = Prefetch(batches, clock, feed=feed)
        self._clock = clock
        self._slowed, self._sleep = slowed(settings.slow, int(task.partition(":")[2] or 0), settings.seed), sleep
        self._watch = Watch(task, report, clock)
        self._closed = False
        self._started = False
        self._told: set[str] = set()
        self._arrival = 0  # which filling of the parameters by other processes the towers know of
        self._early_stop: tuple[str, bool] | None = None  # asked for before there was anybody to ask

    def run(self) -> str:
        """Train to the end; returns why it ended.

        Raises:
            EvenerError: of any kind; the parameters hold nothing of the step that failed.
            Exception: what the user's own model, loss or data raised.
        """
        with self:
            while not self.ended():
                self.step()
        return self.turn.stop

    def __enter__(self) -> Self:
        """Begin: hooks, links, first parameters. A session runs once."""
        if self._closed:
            raise SessionError("this session has ended.", why="a session runs once.", fix="make a new one.")
        self._closed = True
        self._watch.start()
        try:
            self._each("begin")
            self.turn = self.exchange.start()
            self._arrived()
            self._started = True
            if self._early_stop is not None:
                self.stop(self._early_stop[0], complete=self._early_stop[1])
            self._each("after_create")
        except BaseException as error:
            self._fail(error)
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._close("")
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Leave because of this; it is told where it happened."""
        turn = self.turn
        error.add_note(f"{CONTEXT}global step {turn.version}, local step {self.local_step + 1}, lease {turn.lease}")
        self._close(f"{type(error).__name__}: {error}".splitlines()[0])

    def ended(self) -> bool:
        """Whether the run is over; then it is concluded, and validated."""
        if not self.turn.stop:
            return False
        if self.turn.failed:
            raise TaskFailed(f"the run ended: {self.turn.stop}.")
        chaos.point("worker.ending")
        self.exchange.conclude()
        self._each("end")
        # A ps task that is lost in the final evaluation may take the run back to an older step.
        again = self.exchange.returned()
        if again is None or again.stop:
            return True
        self.turn = again
        return False

    def step(self) -> None:
        """Compute one batch, give its gradient, take the new parameters."""
        if self._flies is not None:
            self.turn = self._flies.newest(self.turn)
            if self.turn.stop:
                return
        if (
            self.exchange.arrivals != self._arrival
        ):  # an answer has come, or a validation or a summary has shown the parameters anew
            self._arrived()
        self._each("before_step")
        # Read once: a signal may put another turn, which has no lease, in its place at any moment.
        now = self.turn
        if now.stop:
            return
        since, lease = self._clock(), now.lease
        arrival = self.exchange.arrivals
        loss, data_seconds = self._gradient(now)
        if loss is None:
            self._shrink()
            return
        self._each("before_update", loss)
        since += self._free()
        unused = self.towers.collect(arrival)
        self._tell_notes()
        seconds = self._slow_down(self._clock() - since, data_seconds)
        examples = now.count or sum(map(self.batches.samples_in, now.batches))
        self._watch.idle()
        turn = self.exchange.update(Computed(loss=loss, examples=examples, seconds=seconds, unused=unused))
        self._arrived()
        self.turn = turn
        self.local_step += 1
        result = StepResult(
            global_step=turn.version, local_step=self.local_step, loss=loss, examples=examples, lease=lease,
            seconds=seconds, chief=turn.chief, rejected=turn.rejected, staleness=turn.staleness, dropped=turn.dropped,
            learning_rate=turn.learning_rate, data_seconds=data_seconds,
        )  # fmt: skip
        chaos.point("worker.hook")
        self._each("after_step", result)

    def _free(self) -> float:
        """Wait until the last gradient has travelled, where it may still do so; seconds, none of them of computing."""
        if self._flies is None:
            return 0.0
        since = self._clock()
        self._flies.free()
        return self._clock() - since

    def _gradient(self, now: Turn) -> tuple[float | None, float]:
        """The mean loss of the turn's batches, and the seconds of waiting for data. None: there was no memory for it,
        and there may be for fewer samples."""
        try:
            return self._computed(now)
        except (MemoryError, RuntimeError) as error:
            fewer = self.settings.ps and now.count > self.settings.batch_quantum
            if not fewer or not is_out_of_memory(error):
                raise
            log.warning("%d samples are too many for this worker: %s", now.count, str(error))  # a log may keep errors
            return None, 0.0

    def _shrink(self) -> None:
        """Ask for fewer samples, when nothing holds those of the last batch any more."""
        relieve(self.towers.model)
        assert isinstance(self.exchange, Shrinks)
        self._watch.idle()
        turn = self.exchange.too_big()
        self._arrived()
        self.turn = turn

    def _computed(self, now: Turn) -> tuple[float, float]:
        """Compute the turn's batches, one after the other."""
        leases = now.batches
        self.batches.expect([*leases, *now.ahead])
        losses, waited = 0.0, 0.0
        for number, lease in enumerate(leases):
            self._watch.busy(f"its data: the batch of lease {lease}", LONG_DATA)
            batch = self._prefetch.batch(lease, now.count)
            waited += self._prefetch.waited
            self._prefetch.prepare(next(iter([*leases[number + 1 :], *now.ahead]), -1))
            self._watch.busy(f"its gradient of lease {lease}", LONG_GRADIENT)
            chaos.point("worker.computing")
            losses += self.towers.begin(batch, lease, ONLY if len(leases) == 1 else OneOf(number, len(leases)))
        return losses / len(leases), waited

    def _slow_down(self, seconds: float, waited: float) -> float:
        """Sleep, as `--slow` says of this worker. Returns what the batch has taken with it."""
        turn = self.turn
        batches = turn.count / float(self.settings.mean_batch) if turn.count else len(turn.batches)
        extra = self._slowed.longer(seconds - waited, batches)
        if extra:
            self._watch.busy("the end of its sleep (--slow)", LONG_GRADIENT + extra)
            self._sleep(extra)
        return seconds + extra

    def _arrived(self) -> None:
        self._arrival = self.exchange.arrivals
        self.towers.arrived(self._arrival)

    def _tell_notes(self) -> None:
        notes = self.towers.notes
        while notes:
            note = notes.pop(0)
            if note not in self._told:  # by whichever task; the chief's is enough
                self._told.add(note)
                log.warning("%s", note)
                if self.turn.chief:
                    self.report(Line(self.task, note))

    def stop(self, reason: str, *, complete: bool = True) -> None:
        """End the whole run, on every worker, after the updates under way; `complete` False: without evaluation."""
        if not self._started:
            self._early_stop = self._early_stop or (reason, complete)
            return
        self.turn = self.exchange.stop(reason, complete=complete) or self.turn

    def _each(self, moment: str, *details: object) -> None:
        if (acting := self._acting.get(moment)) is None:
            acting = [
                (hook, f"its hook {type(hook).__name__} in {moment}") for hook in self._hooks if acts(hook, moment)
            ]
            self._acting[moment] = acting
        for hook, what in acting:
            self._watch.busy(what, LONG_HOOK)
            try:
                getattr(hook, moment)(self, *details)
            except (EvenerError, KeyboardInterrupt):
                raise
            except Exception as error:
                if type(hook).__module__.startswith("evener."):
                    raise  # the user's model, data or metric failed in it, and nobody wrote a hook
                raise SessionError(
                    f"hook {type(hook).__name__} failed in {moment}: {type(error).__name__}: {error}",
                    why=f"global step {self.turn.version}, local step {self.local_step} of {self.task}.",
                ) from error
        self._watch.idle()

    def _close(self, failure: str) -> None:
        self._prefetch.close()
        self.batches.close()
        self._watch.stop()
        for hook in reversed(self._hooks):
            try:
                hook.close(self)
            except Exception:
                log.exception("hook %s failed in close", type(hook).__name__)
        if failure:  # the first error is the one to tell, not what follows from it
            with suppress(Exception):
                self.exchange.close(failure)
        else:
            self.exchange.close()
