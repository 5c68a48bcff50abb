"""--slow: workers that sleep as if they were slower."""

import math

import pytest

from evener.errors import ConfigError
from evener.slow import Slowed, Slowness, check_slow, slowed, slownesses


def test_times_seconds_and_what_is_drawn():
    assert slownesses("worker:1=3x, worker:2=80ms,worker:3=lognormal(80ms, 0.5),worker:4=1.5s") == {
        1: Slowness(times=3.0),
        2: Slowness(seconds=0.08),
        3: Slowness(seconds=0.08, spread=0.5),
        4: Slowness(seconds=1.5),
    }
    assert slownesses("") == {}


@pytest.mark.parametrize(
    "text",
    ["3x", "worker:1", "worker:1=", "worker:1=0x", "worker:1=0.5x", "worker:1=3", "worker:1=0ms", "worker:1=-3ms",
     "worker:1=1e99x", "worker:1=9999s", "worker:1=lognormal(3,0.5)", "worker:1=lognormal(3ms)", "ps:0=3x",
     "worker:1=3x,worker:1=4x", "worker:1=lognormal(3ms,9)", ",", "worker:1=3x,"],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="cannot work") as refused:
        slownesses(text)
    assert "worker:1=3x" in refused.value.fix


def test_a_worker_that_there_is_not_is_refused():
    check_slow("worker:1=3x", 2)
    with pytest.raises(ConfigError, match="names worker:2, and there are 2") as refused:
        check_slow("worker:2=3x", 2)
    assert refused.value.fix == "use worker:0 to 1."


def test_who_is_not_named_does_not_sleep():
    assert slowed("worker:1=3x", 0, 0).longer(0.5, 1) == 0.0


def test_times_are_of_its_own_computing_and_seconds_are_the_least():
    assert Slowed(Slowness(times=3.0), 0).longer(0.5, 1) == 1.0
    assert Slowed(Slowness(seconds=0.5), 0).longer(0.2, 1) == pytest.approx(0.3)
    assert Slowed(Slowness(seconds=0.5), 0).longer(0.7, 1) == 0.0
    assert Slowed(Slowness(seconds=0.5), 0).longer(0.2, 3) == pytest.approx(1.3)


def test_what_is_drawn_follows_from_seed_and_worker_and_has_its_median():
    def drawn(seed, worker):
        one = slowed("worker:0=lognormal(80ms,0.5),worker:1=lognormal(80ms,0.5)", worker, seed)
        return [one.longer(0.0, 1) for _ in range(2001)]

    assert drawn(3, 0) == drawn(3, 0)
    assert drawn(3, 0) != drawn(3, 1)
    assert drawn(3, 0) != drawn(4, 0)
    assert sorted(drawn(3, 0))[1000] == pytest.approx(0.08, rel=0.05)
    logarithms = [math.log(one / 0.08) for one in drawn(3, 0)]
    assert (sum(one * one for one in logarithms) / 2001) ** 0.5 == pytest.approx(0.5, rel=0.05)
