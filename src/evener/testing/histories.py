"""Legal histories for any policy, and the promises that every answer must keep.

`play(policy, choices)` lets workers join, compute, push, leave and return; each choice picks one of the moves that are
legal then. It keeps its own book of what the policy was told and said, and raises AssertionError at the first answer
that breaks a promise. It never looks at a private attribute of the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from evener.policy.asynchronous import Asynchronous
from evener.policy.bounded import StaleSynchronous
from evener.policy.collecting import Collecting
from evener.policy.enough import Enough
from evener.policy.events import (
    Apply,
    Decision,
    Drop,
    Expired,
    Joined,
    Left,
    Policy,
    Pushed,
    Recall,
    Release,
    Wait,
)  # fmt: skip
from evener.policy.gathering import Gathering
from evener.policy.synchronous import Synchronous

#: What a history tells a policy.
Told = Joined | Pushed | Left | Expired


def play(policy: Policy, choices: Iterable[int], *, workers: int = 4) -> None:
    """Play one history and then, if enough workers live, on until the next update."""
    Game(policy, workers).play(choices)


class Game:
    """The book of one history, and its checks."""

    def __init__(self, policy: Policy, workers: int) -> None:
        self.policy = policy
        #: The mode's own, which may wait for a number of workers.
        self.rule, self.least = (policy.rule, policy.least) if isinstance(policy, Enough) else (policy, 0)
        self.version = policy.version
        self.workers = range(workers)
        self.computing: dict[int, int] = {}  # worker -> the version it was released with; the oldest release first
        self.waiting: set[int] = set()
        self.clock: dict[int, int] = {}  # live worker -> its pushes, as bounded counts them
        self.undecided: dict[int, tuple[int, int]] = {}  # handle -> (worker, version)
        self.recalled: set[int] = set()  # workers that compute, and were told that it will be dropped
        self.timers: list[int] = []  # tokens, the newest last
        self.seen: Counter[str] = Counter()  # what happened how often
        self.most_alive = 0

    @property
    def live(self) -> set[int]:
        return self.waiting | set(self.computing)

    def play(self, choices: Iterable[int]) -> None:
        for choice in choices:
            moves = self._moves()
            self.tell(moves[choice % len(moves)])
        self._must_go_on()

    @property
    def short(self) -> bool:
        """Fewer live than it waits for: nobody is sent on."""
        return len(self.live) < self.least

    def _moves(self) -> list[Told]:
        """Every legal event; pushes and joins weigh more, else all histories are short lives."""
        moves: list[Told] = []
        for worker in self.workers:
            if worker in self.computing:
                moves += [self._push(worker)] * 5
            moves += [Left(worker)] if worker in self.live else [Joined(worker)] * 2
        moves += [Expired(token) for token in self.timers[-2:]]  # an old one may come late
        return moves

    def _push(self, worker: int) -> Pushed:
        return Pushed(worker, self.computing[worker], handle=self.seen["push"])  # handles ascend as they arrive

    def tell(self, event: Told) -> list[Decision]:
        self._note(event)
        before = self.version
        decisions = self.policy.on(event)
        for decision in decisions:
            match decision:
                case Apply(handles):
                    self._applied(handles)
                case Drop(handle, reason):
                    self._dropped(handle, reason)
                case Recall(worker):
                    assert self.policy.dooms(self.computing[worker]), f"worker {worker} recalled, and not too late"
                    assert worker not in self.recalled, f"worker {worker} was recalled twice"
                    self.recalled.add(worker)
                    self.seen["recalled"] += 1
                case Release(worker):
                    self._released(worker)
                case Wait(token, seconds):
                    assert seconds > 0, "a wait of no time"
                    self.timers.append(token)
        self._check_answer(event, decisions, updated=self.version > before)
        self._check_books()
        self._check_waits()
        return decisions

    def _note(self, event: Told) -> None:
        if isinstance(event, Expired):
            return
        worker = event.worker
        self.recalled.discard(worker)
        match event:
            case Joined():
                self.clock[worker] = min(self.clock.values(), default=0)
                self.waiting.add(worker)
                self.most_alive = max(self.most_alive, len(self.live))
            case Pushed(_, version, handle):
                del self.computing[worker]
                self.waiting.add(worker)
                self.clock[worker] += 1
                self.undecided[handle] = (worker, version)
                self.seen["push"] += 1
            case Left():
                self.computing.pop(worker, None)
                self.waiting.discard(worker)
                del self.clock[worker]

    def _applied(self, handles: tuple[int, ...]) -> None:
        assert handles, "an update without a gradient"
        for handle in handles:
            assert handle in self.undecided, f"gradient {handle} was decided before, or never pushed"
        if isinstance(self.rule, Synchronous):
            origins = [self.undecided[handle] for handle in handles]
            givers = [worker for worker, _ in origins]
            assert len(handles) == self._needed(), f"an update of {len(handles)} gradients, {self._needed()} are needed"
            assert {version for _, version in origins} == {self.version}, "an update of gradients of another version"
            assert self.rule.accumulate or len(set(givers)) == len(givers), "two gradients of one worker in an update"
            assert set(givers) <= self.live, "an update with the gradient of a worker that left"
            assert list(handles) == sorted(handles), "handles not in order of arrival"
        elif isinstance(self.rule, Collecting | Gathering):
            self._collected(handles)
        else:
            assert len(handles) == 1, "an update of several gradients where each is one"
        for handle in handles:
            del self.undecided[handle]
        self.seen["applied"] += len(handles)
        self.version += 1

    def _collected(self, handles: tuple[int, ...]) -> None:
        origins = [self.undecided[handle] for handle in handles]
        givers = {worker for worker, _ in origins}
        assert list(handles) == sorted(handles), "handles not in order of arrival"
        assert givers <= self.live, "an update with the gradient of a worker that left"
        delays = [self.version - version for _, version in origins]
        limit = getattr(self.rule, "delay", 1)
        assert max(delays) < limit, f"applied {max(delays)} updates late, the limit is {limit}"
        if isinstance(self.rule, Gathering):
            assert self._needed() <= len(handles) <= len(self.live), f"an update of {len(handles)} gradients"
            assert len(givers) == len(handles), "two gradients of one worker in an update"
        else:
            assert len(handles) == self._needed(), f"an update of {len(handles)} gradients, {self._needed()} are needed"

    def _dropped(self, handle: int, reason: str) -> None:
        assert isinstance(self.rule, Synchronous | Collecting | Gathering), "this mode drops no gradients"
        assert handle in self.undecided, f"gradient {handle} was decided before, or never pushed"
        assert reason, "a drop without a reason"
        worker, version = self.undecided.pop(handle)
        kind = "orphan" if worker not in self.live else "stale"
        allowed = getattr(self.rule, "delay", 1)
        assert kind == "orphan" or self.version - version >= allowed, "a young gradient of a live worker was dropped"
        self.seen[kind] += 1

    def _released(self, worker: int) -> None:
        assert worker in self.waiting, f"worker {worker} was released but does not wait"
        self.waiting.remove(worker)
        self.computing[worker] = self.version
        self.seen["released"] += 1
        if isinstance(self.rule, StaleSynchronous):
            ahead = self.clock[worker] - min(self.clock.values())
            assert ahead <= self.rule.staleness, f"released {ahead} ahead, the bound is {self.rule.staleness}"

    def _check_answer(self, event: Told, decisions: list[Decision], *, updated: bool) -> None:
        released = [decision.worker for decision in decisions if isinstance(decision, Release)]
        assert released == sorted(released), "releases not in order of worker index"
        dropped = any(isinstance(decision, Drop) for decision in decisions)  # whose worker is released in any case
        for worker in released:
            assert self.computing[worker] == self.version, "a release before the update of the same answer"
        if self.short:
            assert not released, "a worker was sent on, and too few are here"
        elif isinstance(event, Pushed) and isinstance(self.rule, Asynchronous):
            assert decisions == [Apply((event.handle,)), Release(event.worker)], "async did not apply and release"
        kinds = [type(decision) for decision in decisions]
        assert kinds.count(Apply) <= 1, "one event gave two updates"
        ranks = [(Drop, Apply, Recall, Release, Wait).index(kind) for kind in kinds]
        assert ranks == sorted(ranks), f"decisions out of order: {kinds}"
        recalled = [decision.worker for decision in decisions if isinstance(decision, Recall)]
        assert recalled == sorted(recalled), "recalls not in order of worker index"
        for worker, version in self.computing.items():
            doomed = worker in self.recalled
            assert doomed == self.policy.dooms(version), f"worker {worker} is too late, and was not recalled"
        if updated and isinstance(self.rule, Synchronous | Gathering) and not self.short:
            assert not self.waiting, "an update left a worker waiting"
        elif self._accumulates() and released and not self.least and not dropped:
            assert isinstance(self.rule, Synchronous)
            assert self._leases() <= self.rule.replicas_to_aggregate, "a release for a gradient that nobody needs"

    def _leases(self) -> int:
        """Gradients of this version that are here or on their way."""
        return len(self.undecided) + list(self.computing.values()).count(self.version)

    def _check_books(self) -> None:
        assert self.policy.version == self.version, "version is not the number of updates"
        decided = self.seen["applied"] + self.seen["stale"] + self.seen["orphan"]
        assert decided + len(self.undecided) == self.seen["push"], "a gradient is in no book"
        if isinstance(self.rule, Asynchronous | StaleSynchronous):
            assert not self.undecided, "a push was neither applied nor dropped"
        for worker, version in self.undecided.values():
            assert self.version - version < getattr(self.rule, "delay", 1), "a stale gradient is still held"
            assert worker in self.live, "a gradient of a worker that left is still held"

    def _check_waits(self) -> None:
        """A worker waits only for a reason, and the reason is told."""
        match self.rule:
            case _ if self.short:
                assert "waits for" in self.policy.waiting_for(), "too few are here, and nobody is told"
            case Asynchronous() | Collecting():
                assert not self.waiting, "a worker waits where nobody has to"
            case StaleSynchronous(staleness=staleness):
                for worker in self.waiting:
                    ahead = self.clock[worker] - min(self.clock.values())
                    assert ahead > staleness, f"worker {worker} waits within the bound"
            case Synchronous(accumulate=False) | Gathering():
                givers = {worker for worker, _ in self.undecided.values()}
                assert self.waiting == givers, "a worker waits whose gradient is not held"
            case Synchronous(replicas_to_aggregate=aggregate) if not self.least:
                leases = self._leases()
                assert self.most_alive > aggregate or leases <= aggregate, f"{leases} leases, {aggregate} are needed"
                assert not self.waiting or leases >= aggregate, "a worker waits whose gradient is needed"
        if self.live and not self.computing:
            assert not self._enough(), "all workers wait for each other"
            assert self.policy.waiting_for(), "everybody waits, and nobody is told for what"
        assert "  " not in self.policy.waiting_for()  # the sentence can be made at any time

    def _must_go_on(self) -> None:
        """If enough workers live, pushes alone lead to the next update within one late push each and one round."""
        start, limit = self.version, 2 * len(self.live) + self._needed()
        for _ in range(limit if self._enough() else 0):
            if self.version > start:
                return
            if not self.computing:
                self.tell(Expired(self.timers[-1]))  # all others have left since
                continue
            self.tell(self._push(next(iter(self.computing))))
            if self.version == start and self.timers and isinstance(self.rule, Gathering):
                self.tell(Expired(self.timers[-1]))
        assert self.version > start or not self._enough(), f"no update within {limit} pushes"

    def _needed(self) -> int:
        match self.rule:
            case Synchronous(replicas_to_aggregate=aggregate, accumulate=False, elastic=least) if least:
                return max(1, min(aggregate, max(least, len(self.live))))
            case Synchronous(replicas_to_aggregate=aggregate):
                return aggregate
            case Collecting(gradients=gradients):
                return gradients
            case Gathering(quorum=quorum, elastic=elastic):
                return max(1, min(quorum, max(elastic, len(self.live)))) if elastic else quorum
        return 1

    def _accumulates(self) -> bool:
        return isinstance(self.rule, Synchronous) and self.rule.accumulate

    def _enough(self) -> bool:
        several = isinstance(self.rule, Collecting) or self._accumulates()
        needs = 1 if several else self._needed()
        return len(self.live) >= max(needs, self.least)
