"""Which way a task goes to another."""

from __future__ import annotations

import pytest

from evener import errors
from evener.launch.wiring import Dialer
from evener.settings import Settings
from evener.transport.channel import Memory, Ranges


def test_nobody_waits_at_an_address_of_this_machine_where_nobody_listens():
    """A ps that starts again has another one: it is asked for anew."""
    nothing = Ranges(Memory(0), ())
    with pytest.raises(errors.Unavailable, match="has not answered for 0 s"):
        Dialer(Settings(), "worker:0", "run")(0, "shared:evener-nobody", nothing, nothing, 60.0)
