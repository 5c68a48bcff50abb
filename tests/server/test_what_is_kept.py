"""What a script keeps goes to every new life, and to whoever becomes chief."""

from evener.server.kept import KeptText


def test_a_new_life_and_a_new_chief_are_given_it_and_nobody_else():
    kept = KeptText("{}")
    assert kept.owed(0, first=True, chief=True) == b"{}"
    assert kept.owed(0, first=False, chief=True) == b""
    assert kept.owed(1, first=False, chief=False) == b""
    assert kept.owed(1, first=False, chief=True) == b"{}"  # worker 0 is gone
    assert kept.owed(1, first=False, chief=True) == b""
