"""Workers with a loop of their own: several batches in hand, more on demand, and a fence between two epochs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from evener import errors
from evener.policy.hands import Hands
from evener.policy.leases import Leases
from evener.policy.lives import Lives, Stage
from evener.server.batches import named
from evener.server.giving import Given
from evener.server.links import Links, Seat
from evener.server.shard import Shard
from evener.settings import Settings
from evener.wire.messages import Draw, Push

#: A worker's index, and which of its lives.
Life = tuple[int, int]
#: The life of one that has not come so far.
ABSENT = 0
#: Why a batch of a script becomes no update.
UNUSED = "its script took no step with it"


class Scripts:
    """What the workers of a script have in hand. Nobody is parked: who has none may go on without, or ask and wait."""

    def __init__(  # noqa: PLR0913 - what it looks at, each once
        self,
        links: Links,
        shard: Shard,
        leases: Leases,
        *,
        lives: Lives,
        clock: Callable[[], float],
        settings: Settings,
    ) -> None:
        self._links, self._shard, self._leases, self._lives, self._clock = links, shard, leases, lives, clock
        self._terms, self._mode = settings.terms, settings.mode.name
        self.hands = Hands(leases, ahead=not self._terms.drops)
        self._idle: set[int] = set()  # wait in a Draw
        self._untold: dict[Hashable, list[int]] = {}  # given, and not said so far
        self._named: dict[Life, int] = {}  # leases of the gradients that were given since all went on
        # In lockstep the same batches make an update in every run: whoever is given some, all are given as many, also
        # who has not come so far. They hear of theirs with their next answer.
        self._alike = self._terms.together and self._terms.needs_all and not self._terms.drops
        self._everyone = [(worker, ABSENT) for worker in range(settings.workers)] if self._alike else []
        for life in self._everyone:
            self.hands.enter(life, 1)
        self._closed: list[int] = []

    @property
    def idle(self) -> list[Seat]:
        """Those who wait for a batch."""
        return [self._links.seats[worker] for worker in sorted(self._idle)]

    def joins(self, seat: Seat, want: int) -> None:
        """In lockstep all have as many in hand: one, until they push."""
        life = _life(seat)
        self.hands.enter(life, min(want, 1) if self._terms.together else want)
        if (absent := (seat.worker, ABSENT)) in self._everyone:
            self._everyone.remove(absent)
            self._untold[life] = self.hands.take_over(life, absent)
        if self._alike:
            self._everyone = sorted([*self._everyone, life])

    def forget(self, seat: Seat) -> None:
        self._idle.discard(seat.worker)
        self._untold.pop(_life(seat), None)
        self._named.pop(_life(seat), None)
        self._everyone = [life for life in self._everyone if life != _life(seat)]
        self.hands.leave(_life(seat))

    def refuses(self, seat: Seat, push: Push) -> str:
        versions = (seat.version, seat.before)[: self._terms.in_flight]
        if push.version == seat.before and push.version not in versions and seat.its_turn():
            return "computes ahead of its answers, and this ps task was started without: give all the same --in-flight"
        if not seat.its_turn() or seat.worker in self._idle or push.version not in versions or push.count:
            return f"pushed out of turn: version {push.version}, seq {push.seq}"
        if not self.hands.has(_life(seat), named(push)):
            return f"names leases {named(push)}, and has {self.hands.of(_life(seat))} in hand"
        if push.group and not self._terms.several_optimizers:  # gradients of each in turn would fill no update
            return (
                f"has several optimizers, which does not go with --mode {self._mode} and these options so far: "
                "accumulate in the script, or use --mode async"
            )
        return ""

    def pushed(self, seat: Seat, push: Push) -> None:
        self.hands.name(_life(seat), named(push))
        self._named[_life(seat)] = len(named(push))
        self.hands.want(_life(seat), push.want)

    def taken(self, push: Push) -> list[int]:
        return self.hands.void((push.identity.worker, push.identity.epoch), named(push))

    def give(self, workers: Sequence[int]) -> list[Given]:
        """Where an epoch is over, the next one begins."""
        self._leases.turn()
        seats = [self._links.seats[worker] for worker in sorted({*workers, *self._idle}) if worker in self._links.seats]
        owners = [_life(seat) for seat in seats]
        dealt = sorted([*owners, *(life for life in self._everyone if life[1] == ABSENT)])
        self._give(self.hands.deal(dealt, self._live()))
        while self._leases.turn():  # all that were left of one are left out
            self._give(self.hands.deal(dealt, self._live()))
        given = []
        for seat, owner in zip(seats, owners, strict=True):
            drawn = seat.worker in self._idle
            if not drawn:
                self._named.pop(owner, None)
            if not drawn or self._untold.get(owner):
                self._idle.discard(seat.worker)
                given.append(Given(seat, self._first(owner), self._tell(owner), drawn))
        return given

    def _give(self, leases: Mapping[Hashable, Sequence[int]]) -> None:
        """They will hear of these."""
        for owner, more in leases.items():
            self._untold.setdefault(owner, []).extend(more)

    def _tell(self, owner: Life) -> list[int]:
        return self.hands.told(owner, self._untold.pop(owner, []))

    def draw(self, seat: Seat, draw: Draw) -> Given | None:
        """More batches. None: it waits for one.

        Raises:
            ProtocolError: it is not its turn, or it gives up what it has not.
        """
        owner = _life(seat)
        if not seat.its_turn() or seat.worker in self._idle:
            raise errors.ProtocolError(f"{seat.name} drew out of turn.")
        if not self.hands.has(owner, draw.unused):
            raise errors.ProtocolError(
                f"{seat.name} gives up leases {draw.unused}, and has {self.hands.of(owner)} in hand."
            )
        kept = set(self.hands.of(owner)) - set(draw.unused) - set(self._untold.get(owner, []))
        if draw.wait and kept:
            raise errors.ProtocolError(f"{seat.name} waits for a batch, and has {sorted(kept)} in hand.")
        self.hands.name(owner, draw.unused)
        self._closed += [lease for lease in draw.unused if self._leases.close(lease, owner)]
        if draw.wait and self._leases.epoch and not self._untold.get(owner):
            self.hands.want(owner, max(1, draw.want))
            self._idle.add(seat.worker)
            self._lives.move(seat.worker, Stage.IDLE, self._clock())
            return None
        behind = self.hands.behind(owner)
        if self._alike:
            self._give(
                self.hands.draw_alike(owner, draw.want, {life: self._named.get(life, 0) for life in self._everyone})
            )
        else:
            self._give({owner: self.hands.draw(owner, draw.want, self._live())})
        leases = self._tell(owner)
        if (behind or draw.wait) and leases:
            # Of an epoch that has begun since: the parameters at the end of the last one come too.
            seat.drawn = self._shard.state.step
        return Given(seat, self._first(owner), leases, drawn=True)

    def closed(self) -> list[int]:
        """Leases that were given up since this was asked last."""
        closed, self._closed = self._closed, []
        return closed

    def begins(self, seat: Seat) -> bool:
        """Whether it begins an epoch, not its first one."""
        return self.hands.begins(_life(seat))

    def stopped(self) -> list[Seat]:
        """The run is over: nobody waits for a batch any more. Those who did."""
        seats = self.idle
        self._idle.clear()
        return seats

    def recall(self, seat: Seat) -> None:
        self.hands.revoke(_life(seat))

    def drained(self) -> frozenset[int] | None:
        if not self._leases.epoch or self._leases.left:
            return None
        live = [seat for seat in self._links.seats.values() if seat.joined]
        if not live or not all(seat.whole or seat.worker in self._idle for seat in live):
            return None
        return frozenset(self._idle)

    def finishing(self, others: str) -> str:
        """Who has finished an epoch, and waits for the rest of it; empty if nobody does."""
        if not self._idle:
            return ""
        who = [seat.name for seat in self.idle]
        short = ", ".join(who[:4]) + (f" and {len(who) - 4} more" if len(who) > 4 else "")
        epoch = self._leases.epoch_of((self._leases.limit or 1) - 1) + 1
        have, wait = ("has", "waits") if len(who) == 1 else ("have", "wait")
        return f"{short} {have} finished epoch {epoch} and {wait} for {others or 'the rest of it'}"

    def _first(self, owner: Life) -> int:
        return next(iter(self.hands.of(owner)), -1)

    def _live(self) -> int:
        return len(self._everyone) or sum(seat.joined for seat in self._links.seats.values())


def _life(seat: Seat) -> Life:
    return (seat.worker, seat.epoch)
