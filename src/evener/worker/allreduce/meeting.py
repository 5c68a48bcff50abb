"""Where processes of `torch.distributed` meet on one machine."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore

__all__ = ["Store", "listening_store", "store_at"]


def listening_store(host: str, timeout: float) -> tuple[Store, str]:
    """The place where towers or stages of one machine meet, and its address.

    Given a host, TCPStore would listen on every interface all the same: the socket is ours (RELIABILITY S5).
    """
    listener = socket.create_server((host, 0), backlog=64)
    port = listener.getsockname()[1]
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout),
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    return store, f"{host}:{port}"


def store_at(address: str, timeout: float) -> Store:
    """The store that the first of them has opened."""
    host, _, port = address.rpartition(":")
    return TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
