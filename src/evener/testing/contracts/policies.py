"""What every policy promises: legal histories, and the promises of `evener.testing.histories` after every answer."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings, strategies as st
from hypothesis.strategies import SearchStrategy

from evener.policy.events import Decision, Policy
from evener.testing.histories import Game, Told, play

#: Makes the same policy each time.
Maker = Callable[[], Policy]


class RecordingGame(Game):
    """A history that is written down."""

    def __init__(self, policy: Policy, workers: int) -> None:
        super().__init__(policy, workers)
        self.told: list[tuple[Told, list[Decision]]] = []

    def tell(self, event: Told) -> list[Decision]:
        decisions = super().tell(event)
        self.told.append((event, decisions))
        return decisions


class PolicyContract:
    """Who inherits overrides `makers`. The same histories each time: a failure belongs to the change that made it."""

    histories = 100  # tried for each promise

    def makers(self, version: int) -> SearchStrategy[Maker]:
        """The mode with any options that it may have, beginning at this version."""
        raise NotImplementedError

    def every(self, check: Callable[[Maker, bytes, int], None], version: int = 0) -> None:
        """A check on many histories: a maker, choices of legal events, and how many workers there may be."""
        given_each = given(self.makers(version), st.binary(min_size=40, max_size=160), st.integers(1, 6))
        each = settings(derandomize=True, deadline=None, database=None, max_examples=self.histories)
        each(given_each(check))()

    def test_every_answer_keeps_every_promise(self) -> None:
        def check(make: Maker, choices: bytes, workers: int) -> None:
            play(make(), choices, workers=workers)

        self.every(check)

    def test_a_resumed_policy_counts_on_from_its_version(self) -> None:
        def check(make: Maker, choices: bytes, workers: int) -> None:
            game = Game(make(), workers)
            assert game.version == 7
            game.play(choices)  # it compares its own count with the policy's after every answer

        self.every(check, version=7)

    def test_the_same_events_give_the_same_decisions(self) -> None:
        def check(make: Maker, choices: bytes, workers: int) -> None:
            first, second = RecordingGame(make(), workers), make()
            first.play(choices)
            for event, decisions in first.told:
                assert second.on(event) == decisions
            assert second.waiting_for() == first.policy.waiting_for()

        self.every(check)
