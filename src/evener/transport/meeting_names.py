"""Where a ps task that listens on the network is met through shared memory, by tasks of its own machine and user.

Abstract sockets belong to whoever binds a name first, so a name that others can guess could be squatted. Each listener
takes a random one and writes it where only this user can read it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from pathlib import Path

#: A name as it stands in a file.
NAME = re.compile(r"shared:evener-[0-9a-f]{32}")


def fresh() -> str:
    """An address for a new listener that nobody can have taken."""
    return f"shared:evener-{secrets.token_hex(16)}"


def tell(private: Path, key: str, address: str) -> None:
    """Write where the task of this key is met now. Raises OSError."""
    path = _path(private, key)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(address)
    draft.replace(path)


def find(private: Path, key: str) -> str:
    """Where the task of this key is met; empty if nobody has told."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        told = _path(private, key).read_text()[:64]
        return told if NAME.fullmatch(told) else ""
    return ""


def forget(private: Path, key: str, address: str) -> None:
    """It is met there no more; a newer address stays."""
    with contextlib.suppress(OSError):
        if find(private, key) == address:
            _path(private, key).unlink()


def _path(private: Path, key: str) -> Path:
    """A home directory may be shared by machines: the host's name stands in the file's."""
    return private / "meet" / re.sub(r"[^\w.-]", "_", f"{socket.gethostname()}-{key}")
