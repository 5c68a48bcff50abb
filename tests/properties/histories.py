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
from evener.policy.events import (
    Apply,
    Decision,
    Drop,
    Event,
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


def play(policy: Policy, choices: Iterable[int], *, workers: int = 4) -> None:
    """Play one history and then, if enough workers live, on until the next update."""
    Game(policy, workers).play(choices)


class Game:
    """The book of one history, and its checks."""

    def __init__(self, policy: Policy, workers: int) -> None:
        self.policy = policy
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

    def _moves(self) -> list[Event]:
        """Every legal event; pushes and joins weigh more, else all histories are short lives."""
        moves: list[Event] = []
        for worker in self.workers:
            if worker in self.computing:
                moves += [self._push(worker)] * 5
            moves += [Left(worker)] if worker in self.live else [Joined(worker)] * 2
        moves += [Expired(token) for token in self.timers[-2:]]  # an old one may come late
        return moves

    def _push(self, worker: int) -> Pushed:
        return Pushed(worker, self.computing[worker], handle=self.seen["push"])  # handles ascend as they arrive

    def tell(self, event: Event) -> list[Decision]:
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

    def _note(self, event: Event) -> None:
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
        if isinstance(self.policy, Synchronous):
            origins = [self.undecided[handle] for handle in handles]
            givers = [worker for worker, _ in origins]
            assert len(handles) == self._needed(), f"an update of {len(handles)} gradients, {self._needed()} are needed"
            assert {version for _, version in origins} == {self.version}, "an update of gradients of another version"
            assert self.policy.accumulate or len(set(givers)) == len(givers), "two gradients of one worker in an update"
            assert set(givers) <= self.live, "an update with the gradient of a worker that left"
            assert list(handles) == sorted(handles), "handles not in order of arrival"
        elif isinstance(self.policy, Collecting | Gathering):
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
        assert max(delays) < self.policy.delay, f"applied {max(delays)} updates late, the limit is {self.policy.delay}"
        if isinstance(self.policy, Gathering):
            assert self._needed() <= len(handles) <= len(self.live), f"an update of {len(handles)} gradients"
            assert len(givers) == len(handles), "two gradients of one worker in an update"
        else:
            assert len(handles) == self._needed(), f"an update of {len(handles)} gradients, {self._needed()} are needed"

    def _dropped(self, handle: int, reason: str) -> None:
        assert isinstance(self.policy, Synchronous | Collecting | Gathering), "this mode drops no gradients"
        assert handle in self.undecided, f"gradient {handle} was decided before, or never pushed"
        assert reason, "a drop without a reason"
        worker, version = self.undecided.pop(handle)
        kind = "orphan" if worker not in self.live else "stale"
        allowed = getattr(self.policy, "delay", 1)
        assert kind == "orphan" or self.version - version >= allowed, "a young gradient of a live worker was dropped"
        self.seen[kind] += 1

    def _released(self, worker: int) -> None:
        assert worker in self.waiting, f"worker {worker} was released but does not wait"
        self.waiting.remove(worker)
        self.computing[worker] = self.version
        self.seen["released"] += 1
        if isinstance(self.policy, StaleSynchronous):
            ahead = self.clock[worker] - min(self.clock.values())
            assert ahead <= self.policy.staleness, f"released {ahead} ahead, the bound is {self.policy.staleness}"

    def _check_answer(self, event: Event, decisions: list[Decision], *, updated: bool) -> None:
        released = [decision.worker for decision in decisions if isinstance(decision, Release)]
        assert released == sorted(released), "releases not in order of worker index"
        dropped = any(isinstance(decision, Drop) for decision in decisions)  # whose worker is released in any case
        for worker in released:
            assert self.computing[worker] == self.version, "a release before the update of the same answer"
        if isinstance(event, Pushed) and isinstance(self.policy, Asynchronous):
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
        if updated and isinstance(self.policy, Synchronous | Gathering):
            assert not self.waiting, "an update left a worker waiting"
        elif isinstance(self.policy, Synchronous) and self.policy.accumulate and released and not dropped:
            assert self._leases() <= self.policy.replicas_to_aggregate, "a release for a gradient that nobody needs"

    def _leases(self) -> int:
        """Gradients of this version that are here or on their way."""
        return len(self.undecided) + list(self.computing.values()).count(self.version)

    def _check_books(self) -> None:
        assert self.policy.version == self.version, "version is not the number of updates"
        decided = self.seen["applied"] + self.seen["stale"] + self.seen["orphan"]
        assert decided + len(self.undecided) == self.seen["push"], "a gradient is in no book"
        if isinstance(self.policy, Asynchronous | StaleSynchronous):
            assert not self.undecided, "a push was neither applied nor dropped"
        for worker, version in self.undecided.values():
            assert self.version - version < getattr(self.policy, "delay", 1), "a stale gradient is still held"
            assert worker in self.live, "a gradient of a worker that left is still held"

    def _check_waits(self) -> None:
        """A worker waits only for a reason, and the reason is told."""
        match self.policy:
            case Asynchronous() | Collecting():
                assert not self.waiting, "a worker waits where nobody has to"
            case StaleSynchronous(staleness=staleness):
                for worker in self.waiting:
                    ahead = self.clock[worker] - min(self.clock.values())
                    assert ahead > staleness, f"worker {worker} waits within the bound"
            case Synchronous(accumulate=False) | Gathering():
                givers = {worker for worker, _ in self.undecided.values()}
                assert self.waiting == givers, "a worker waits whose gradient is not held"
            case Synchronous(replicas_to_aggregate=aggregate):
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
            if self.version == start and self.timers and isinstance(self.policy, Gathering):
                self.tell(Expired(self.timers[-1]))
        assert self.version > start or not self._enough(), f"no update within {limit} pushes"

    def _needed(self) -> int:
        match self.policy:
            case Synchronous(replicas_to_aggregate=aggregate, accumulate=False, elastic=True):
                return max(1, min(aggregate, len(self.live)))
            case Synchronous(replicas_to_aggregate=aggregate):
                return aggregate
            case Collecting(gradients=gradients):
                return gradients
            case Gathering(quorum=quorum, elastic=elastic):
                return max(1, min(quorum, len(self.live))) if elastic else quorum
        return 1

    def _enough(self) -> bool:
        several = isinstance(self.policy, Collecting) or (
            isinstance(self.policy, Synchronous) and self.policy.accumulate
        )
        needs = 1 if several else self._needed()
        return len(self.live) >= needs
