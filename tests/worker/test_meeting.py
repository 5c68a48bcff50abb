"""Where processes of one machine meet: known by its address, and by no other interface."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest

from evener.worker.allreduce.meeting import listening_store, store_at


def test_what_one_says_the_other_hears():
    store, address = listening_store("127.0.0.1", 20.0)
    other = store_at(address, 20.0)
    store.set("what", "said")

    assert other.get("what") == b"said"
    assert (store.timeout, other.timeout) == (timedelta(seconds=20.0), timedelta(seconds=20.0))


def test_it_listens_where_it_was_told_to_and_nowhere_else():
    store, address = listening_store("127.0.0.1", 20.0)
    host, _, port = address.rpartition(":")

    assert host == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), 20.0)
    store.set("still", "there")
