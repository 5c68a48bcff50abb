"""Counts and rates, on a clock that the test moves."""

import math

import pytest

from evener.tally import Tally, Window


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def steadily(window, clock, seconds, per_second):
    for _ in range(round(seconds * per_second)):
        clock.now += 1 / per_second
        window.add()


# --- the window


def test_nothing_counted_is_a_rate_of_zero(clock):
    window = Window(clock)
    assert window.rate() == 0.0
    clock.now += 3
    assert window.rate() == 0.0


def test_no_time_passed_is_a_rate_of_zero_and_no_division_by_it(clock):
    window = Window(clock)
    window.add(100)

    assert window.rate() == 0.0


@pytest.mark.parametrize("per_second", [0.5, 1, 20, 1000])
def test_a_steady_count_is_its_rate(clock, per_second):
    window = Window(clock)
    steadily(window, clock, 20, per_second)

    assert window.rate() == pytest.approx(per_second, rel=0.02)


def test_the_rate_is_that_of_now_and_not_of_the_whole_run(clock):
    window = Window(clock, seconds=5.0)
    steadily(window, clock, 100, 100)
    steadily(window, clock, 6, 10)

    assert window.rate() == pytest.approx(10, rel=0.02)


def test_a_window_of_its_length_says_the_mean_over_it(clock):
    window = Window(clock, seconds=10.0)
    steadily(window, clock, 20, 100)
    steadily(window, clock, 5, 20)  # half of the window

    assert window.rate() == pytest.approx(60, rel=0.06)


def test_the_rate_falls_while_nothing_comes(clock):
    window = Window(clock, seconds=5.0)
    steadily(window, clock, 10, 100)
    rates = []
    for _ in range(4):
        clock.now += 5
        rates.append(window.rate())

    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= 53  # five seconds of a hundred a second, five of nothing
    assert rates[-1] <= 22


def test_amounts_are_added(clock):
    window = Window(clock)
    clock.now += 2
    window.add(100)
    window.add(50.0)

    assert window.rate() == 75.0


def test_a_million_steps_need_few_marks(clock):
    window = Window(clock, seconds=5.0)
    steadily(window, clock, 20, 1000)

    assert len(window._marks) <= 13  # ten, and the ends


# --- the tally


def test_a_tally_starts_empty(clock):
    tally = Tally(clock)

    assert (tally.examples, tally.updates, tally.dropped, tally.max_staleness) == (0, 0, 0, 0)
    assert (tally.mean_staleness, tally.recent_staleness, tally.seconds) == (0.0, 0.0, 0.0)
    assert math.isnan(tally.loss)


def test_gradients_and_updates_are_counted_apart(clock):
    tally = Tally(clock)
    for loss, staleness in ((1.0, 0), (2.0, 4)):
        tally.applied(loss, 100, staleness)
    clock.now += 2
    tally.updated()

    assert (tally.examples, tally.updates) == (200, 1)
    assert (tally.loss, tally.mean_staleness, tally.max_staleness) == (1.5, 2.0, 4)
    assert (tally.examples_window.rate(), tally.steps_window.rate()) == (100.0, 0.5)


def test_a_run_lasts_from_its_first_step_to_its_last_update(clock):
    tally = Tally(clock)
    clock.now += 7  # no worker yet
    assert tally.seconds == 0.0
    tally.begin()
    assert tally.seconds == 0.0
    clock.now += 2
    tally.updated()
    clock.now += 60  # the last evaluation

    assert tally.seconds == 2.0


def test_rates_begin_with_the_first_step_and_not_with_the_process(clock):
    tally = Tally(clock)
    clock.now += 4  # imports, data, a worker that is late
    tally.begin()
    for _ in range(2):
        clock.now += 0.5
        tally.applied(1.0, 100, 0)
        tally.updated()

    assert (tally.steps_window.rate(), tally.examples_window.rate()) == (2.0, 200.0)


def test_they_may_begin_at_a_time_that_is_known_later(clock):
    tally = Tally(clock)
    clock.now += 10
    tally.begin(clock.now - 0.5)
    tally.applied(1.0, 100, 0)
    tally.updated()

    assert (tally.seconds, tally.steps_window.rate(), tally.examples_window.rate()) == (0.5, 2.0, 200.0)


def test_loss_and_recent_staleness_are_of_the_last_fifty_gradients(clock):
    tally = Tally(clock)
    for _ in range(50):
        tally.applied(9.0, 1, 10)
    for _ in range(50):
        tally.applied(1.0, 1, 2)

    assert (tally.loss, tally.recent_staleness) == (1.0, 2.0)
    assert (tally.mean_staleness, tally.max_staleness) == (6.0, 10)  # of all
