"""A slice of the parameters and the gradients that wait to be applied to it: handle -> gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from evener import chaos
from evener.errors import ProtocolError, not_finite
from evener.rules import Late
from evener.state import rules
from evener.state.group_settings import Setting, put, read
from evener.state.ruled import Sent
from evener.state.state import State
from evener.state.tensors import Slot
from evener.wire.messages import Key, Push


@dataclass(slots=True)
class Gradient:
    """A pushed gradient that was not applied yet. Its slot is the worker's own memory until `Shard.released`."""

    push: Push
    slot: Slot
    borrowed: bool = True
    bad: str = ""  # a tensor of it that is not finite
    settings: Sequence[Setting] = ()  # of the optimizer's groups, as its worker's script had them
    sent: Sent | None = None  # what its worker had been sent then, where a rule asks

    @property
    def key(self) -> Key:
        return (self.push.identity.worker, self.push.identity.epoch, self.push.seq)


class Shard:
    """Holds gradients by handle and applies them to its state; decides nothing.

    Args:
        measure: the length of each gradient is asked for.
        usual: samples of a usual batch, where each gradient of another size makes a step of its own: so much longer.
        workers: that the run was started with, for rules.
    """

    def __init__(self, state: State, *, measure: bool = False, usual: float | None = None, workers: int = 1) -> None:
        self.state = state
        self._workers = workers
        self._usual = usual
        self._measure = measure
        self.held: dict[int, Gradient] = {}
        self._handles = count(1)
        self._mean_is_last = False
        self._settings: dict[int, tuple[int, Sequence[Setting]]] = {}  # worker -> its epoch, and what it said last

    def remember(self, push: Push) -> None:
        """What the script of its worker has set, until it says otherwise.

        Raises:
            ProtocolError: it does not fit the optimizer.
        """
        if push.settings:
            try:
                settings = read(push.settings, self.state.optimizer)
            except ValueError as error:
                raise ProtocolError(
                    f"worker:{push.identity.worker} set what the optimizer has not: {error}.",
                    why="its script and this ps task must have made the same optimizer.",
                ) from error
            self._settings[push.identity.worker] = (push.identity.epoch, settings)

    def hold(self, push: Push, slot: Slot) -> int:
        """Take a gradient that lies in `slot`; a number stands for it from now on. It may be `bad`."""
        handle = next(self._handles)
        epoch, settings = self._settings.get(push.identity.worker, (0, ()))
        self.held[handle] = Gradient(
            push, slot, bad="" if push.finite else slot.first_non_finite(self.state.infinite),
            settings=settings if push.settings and epoch == push.identity.epoch else (),
            sent=self.state.ruled.has(push.identity.worker),
        )  # fmt: skip
        chaos.point("server.held")
        return handle

    def released(self, worker: int) -> None:
        """This worker gets the parameters of now. What its memory still holds is copied: it will write there again."""
        self.state.ruled.sent(worker, self.state.step)
        for gradient in self.held.values():
            if gradient.borrowed and gradient.push.identity.worker == worker:
                copy = Slot(gradient.slot.layout, gradient.slot.shard)
                for mine, theirs in zip(copy.parts, gradient.slot.parts, strict=True):
                    mine[:] = theirs
                gradient.slot, gradient.borrowed = copy, False

    def apply(self, handles: Sequence[int], factor: float | None = None) -> list[Push]:
        """One update with the mean of these gradients, summed in the order of their leases whatever their arrival.

        Args:
            factor: see `State.clipped`, where there are other shards.

        Returns:
            Their pushes, in that order.

        Raises:
            NonFinite: the mean or the update holds NaN or infinity.
        """
        gradients = sorted((self.held.pop(handle) for handle in handles), key=_place)
        pushes = [gradient.push for gradient in gradients]
        unused = self._unused(pushes)
        chaos.point("server.applying")
        weights, scale = self.weigh(gradients)
        for gradient in gradients:  # of one: the chief's program alone says any
            put(gradient.settings, self.state.optimizer)
        mean = self.state.mean(self._compensated(gradients), weights)
        computed = len(gradients) > 1 or self.state.ruled.compensates
        if computed and (bad := mean.first_non_finite(self.state.infinite)):
            givers = ", ".join(f"worker:{push.identity.worker} (lease {push.lease})" for push in pushes)
            raise not_finite(
                f"the mean of the gradients of {givers} is not finite in {bad!r}, though each of them is, "
                f"at global step {self.state.step}."
            )
        applied = self.state.apply(mean, unused, factor, scale)
        chaos.point("server.applied")
        self._mean_is_last = self.state.is_averaged(applied)
        return pushes

    def weigh(self, gradients: Sequence[Gradient]) -> tuple[Sequence[float] | None, float]:
        """What these weigh in the mean of the next update, and how long its step is: see `rules.weigh`.

        Rules scale the step of each by its age; where batches are unequal and each makes a step of its own, it is as
        long as its size over the usual one, so that every sample of the run counts alike.
        """
        counts = [gradient.push.count for gradient in gradients]
        scales = [self.state.ruled.scale(self._late(gradient.push)) for gradient in gradients]
        if self._usual is not None and all(counts):
            scales = [scale * (count / self._usual) for scale, count in zip(scales, counts, strict=True)]
        return rules.weigh(counts, scales)

    def _late(self, push: Push) -> Late:
        """What rules are told of a gradient of the next update: of its header and the version alone, so every shard
        says the same."""
        staleness = self.state.step - push.version
        return Late(push.identity.worker, staleness, self._workers, push.count or push.examples)

    def _compensated(self, gradients: Sequence[Gradient]) -> list[Slot]:
        """What rules make of these, one by one. A worker's own memory is not written: it may be shown again."""
        ruled, alone = self.state.ruled, len(gradients) == 1
        if not ruled.compensates:
            return [gradient.slot for gradient in gradients]
        named = self.state.parameters.layout.named
        made = []
        for gradient in gradients:
            out = self.state.averaged if alone else gradient.slot
            if gradient.borrowed and not alone:
                out = Slot(out.layout, out.shard)
            unused = named(gradient.push.unused) if gradient.push.unused else ()
            late = self._late(gradient.push)
            made.append(ruled.compensated(gradient.slot, out, late, sent=gradient.sent, unused=unused))
        return made

    def _unused(self, pushes: Sequence[Push]) -> frozenset[str]:
        """The parameters that none of these gradients has."""
        if not all(push.unused for push in pushes):
            return frozenset()
        named = self.state.parameters.layout.named
        return frozenset.intersection(*(named(push.unused) for push in pushes))

    def products(self, handle: int) -> list[tuple[Key, float]]:
        """The inner products of a gradient's part here with itself and with the others that may share its update.

        Of a mean that lies on several shards no shard knows the norm. The leader knows it from these, without another
        round of messages: the square of a sum is the sum of all products.
        """
        mine, clips = self.held[handle], self.state.recipe.clip_norm is not None
        if not self._measure and not (clips and self.state.parameters.layout.shards > 1):
            return []
        others = self.held.values() if clips else [mine]
        return [(held.key, rules.product(mine.slot, held.slot)) for held in others]

    def drop(self, handle: int) -> Push:
        return self.held.pop(handle).push

    def parts(self, what: str, own: Slot | None, worker: int | None = None) -> list[memoryview]:
        """The bytes of what a `Pull` asks for; `own` is the asking worker's last gradient, if it is kept.

        Args:
            worker: who asks: parameters that are shown are those that it computes on from now.
        """
        if what == "averages" and self.state.averages is not None:
            return self.state.averages.parts
        if what == "gradients":
            return self.state.averaged.parts if self._mean_is_last or own is None else own.parts
        if worker is not None:
            self.state.ruled.sent(worker, self.state.step)
        return self.state.parameters.parts


def _place(gradient: Gradient) -> tuple[int, Key]:
    """Where it stands in the sum: by lease; those without one by worker."""
    return (gradient.push.lease, gradient.key)
