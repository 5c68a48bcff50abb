"""What a real run has open while it trains: nothing that another machine could reach (RELIABILITY section 5)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest
from running import RECIPE, start, until

#: As the kernel prints them: 127.x.y.z in the byte order of the machine, and ::1.
LOOPBACK = "7F"
LOOPBACK_6 = "00000000000000000000000001000000"


def open_to_others(pids: Iterable[int]) -> tuple[list[str], list[str]]:
    """(addresses on which these processes listen, those of them beyond loopback)."""
    links = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    links.add(os.readlink(fd))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    found = [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]
    return found, [name for name in found if name != LOOPBACK_6 and not (len(name) == 8 and name[-2:] == LOOPBACK)]


def test_an_open_port_would_be_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("0.0.0.0", 0)):
        found, exposed = open_to_others([os.getpid()])
    assert len(found) >= 2 and exposed == ["00000000"]


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_no_task_of_a_run_listens_beyond_this_machine(tmp_path: Path, transport: str) -> None:
    (tmp_path / "small.py").write_text(RECIPE)
    gate = tmp_path / "gate"
    command = ["train", f"{tmp_path / 'small.py'}:recipe", "--ps", 2, "--workers", 2, "--train-steps", 30,
               "--logdir", "run", "--transport", transport, "--set", f"gate={gate}"]  # fmt: skip
    with start(tmp_path, *command) as run:
        until(lambda: len(list(tmp_path.glob("worker:*.waits"))) == 2, 90, "both workers at the gate")
        found, exposed = open_to_others([run.process.pid, *(task.pid for task in run.tasks())])
        gate.touch()
        assert run.finish().code == 0
    assert exposed == []
    assert len(found) == (2 if transport == "tcp" else 0)
