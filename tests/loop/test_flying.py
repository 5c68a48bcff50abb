"""A gradient on its way when its life ends: the program goes on with the parameters of the next one."""

import pytest

from evener.loop.flying import Flying
from evener.transport.channel import Memory
from evener.worker.exchange.exchange import Computed, Turn


class Servers:
    """Answer with turns that a test names; each brings its version, as a byte, where answers land."""

    def __init__(self, landing, *turns):
        self.landing, self.turns, self.given, self.arrivals = landing, list(turns), [], 0

    def start(self):
        return self.take()

    def give(self, computed, version):
        self.given.append(version)
        return True

    def returned(self):
        return None

    def take(self):
        turn = self.turns.pop(0)
        self.landing.view[:] = bytes([turn.version]) * len(self.landing.view)
        return turn


@pytest.fixture
def fly():
    def fly(*turns):
        landing, parameters = Memory(4), Memory(4)
        servers = Servers(landing, *turns)
        return Flying(servers, landing, parameters, None), servers, parameters

    return fly


GRADIENT = Computed(loss=0.0, examples=1, seconds=0.0)


@pytest.mark.parametrize("land", [False, True])
def test_where_a_program_hears_of_a_new_life_as_it_asks_for_a_batch_its_next_gradient_is_of_that_life(land, fly):
    """A ps task came back at version 3: that the model had version 18 is nothing that it knows."""
    flying, servers, parameters = fly(Turn(version=18, lease=-1), Turn(version=3, lease=-1, anew=True))
    flying.start()
    flying.update(GRADIENT)
    assert flying.settled(land=land).anew
    assert (parameters.view[0], flying.landed) == (3, True)
    flying.update(GRADIENT)
    assert servers.given == [18, 3]


def test_else_nothing_comes_to_the_model_while_a_gradient_is_computed(fly):
    flying, servers, parameters = fly(Turn(version=18, lease=-1), Turn(version=19, lease=-1))
    flying.start()
    flying.update(GRADIENT)
    assert not flying.settled(land=False).anew
    assert (parameters.view[0], flying.landed) == (18, False)
    flying.update(GRADIENT)
    assert (servers.given, parameters.view[0]) == ([18, 18], 19)
