"""Which gradients must not become an update, and what is done about each: --on-nan, --refuse-norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evener.errors import NonFinite, RolledBack, not_finite
from evener.policy.poison import Answer, Poison
from evener.report import Line
from evener.server.batches import named
from evener.server.course import Course
from evener.server.rounds import Rounds
from evener.server.shard import Shard
from evener.wire.messages import Key, Push


class Guard:
    """Looks at each gradient once it lies on all shards, before the policy hears of it."""

    def __init__(self, shard: Shard, rounds: Rounds, course: Course) -> None:
        self._shard, self._rounds, self._course = shard, rounds, course
        self._limit = course.settings.refuse_norm
        self._poison = Poison(course.settings.on_nan)
        self._elsewhere: dict[Key, str] = {}  # gradients that are not finite on another shard -> the tensor there

    def note(self, key: Key, bad: str) -> None:
        """A follower says that its part of this gradient is not finite."""
        if bad:
            self._elsewhere[key] = bad

    def forget(self, worker: int, epoch: int) -> None:
        self._elsewhere = {key: bad for key, bad in self._elsewhere.items() if key[:2] != (worker, epoch)}

    def wrong(self, handle: int) -> str:
        """What is wrong with a gradient, as part of a sentence; empty if nothing is."""
        gradient = self._shard.held[handle]
        bad = self._elsewhere.pop(gradient.key, "") or gradient.bad
        if bad:
            return f"{self._shard.state.parameters.layout.what(bad)}, which is not finite"
        if gradient.push.loss is not None and not math.isfinite(gradient.push.loss):
            return "a loss that is not finite"
        if self._limit is not None and (length := self._rounds.products.length(gradient.key)) > self._limit:
            return f"a gradient of norm {length:.6g}, above --refuse-norm {self._limit:g}"
        return ""

    def refuse(self, handle: int, wrong: str) -> NonFinite | None:
        """Do with it as --on-nan says. Returns why the run is to stop, if it is.

        Raises:
            RolledBack: it is to go back to the newest checkpoint.
        """
        push = self._shard.held[handle].push
        what = f"worker:{push.identity.worker} pushed {wrong}, {self._place(push)}"
        answer = self._poison.judge(push.lease)
        if answer is Answer.STOP:
            self._rounds.drop(handle, "not finite")
            return not_finite(f"{what}.")
        if answer is Answer.BACK:
            raise RolledBack(f"{what}.", leases=tuple(named(push)))
        close = answer is Answer.CLOSE
        then = "the batch is given up" if close else "the batch is tried once more"
        self._course.setup.report(Line("ps:0", f"{what}; {then}"))
        self._rounds.refuse(handle, "not finite" if "finite" in wrong else "too long", close=close)
        return None

    def exploded(self, error: NonFinite, pushes: Sequence[Push]) -> Exception:
        """An update of finite gradients made a parameter infinite: what to raise."""
        if self._poison.exploded() is Answer.STOP:
            return error
        return RolledBack(error.what, leases=tuple(lease for push in pushes for lease in named(push)))

    def applied(self) -> None:
        """An update was made."""
        self._poison.applied()

    def _place(self, push: Push) -> str:
        loss = "" if push.loss is None else f"loss {push.loss:.6g}"
        return f"at global step {push.version}, {self._course.batches_of(push, loss)}"
