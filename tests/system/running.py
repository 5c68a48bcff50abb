"""Real runs for the system tests: started here, watched by what they say, ended by their pid."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from evener.commands.chaos import remains

#: Seconds for what happens soon, on a machine where other programs want the same cores. No test asks how long it took:
#: what a launcher grants, `launch/test_local_run.py` checks on a virtual clock.
PATIENCE = 60.0
EVENER = [sys.executable, "-m", "evener"]

#: A small recipe that needs nothing to load. `gate` holds every worker at global step `gate_step` until that file is
#: there, so that a test can do something to a run that is certainly not over; `interrupt_at` is a Ctrl-C to oneself.
RECIPE = """
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

import evener

OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
}


def data():
    inputs = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    target = (inputs[:, :3].sum(1) > 0).long()
    return (inputs[:403], target[:403]), (inputs[403:], target[403:])


def model(hidden):
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 2))


class Gate(evener.Hook):
    def __init__(self, gate, step):
        self.gate, self.step = Path(gate), step

    def before_step(self, session):
        if session.turn.version >= self.step and not self.gate.exists():
            self.gate.with_name(f"{session.task}-{os.getpid()}.waits").touch()
            while not self.gate.exists():
                time.sleep(0.005)


class InterruptAt(evener.Hook):
    def __init__(self, step):
        self.step = step

    def after_step(self, session, result):
        if result.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def recipe(
    optimizer: str = "sgd", hidden: int = 8, gate: str = "", gate_step: int = 20, interrupt_at: int = 0
) -> evener.Recipe:
    hooks = [Gate(gate, gate_step)] * bool(gate) + [InterruptAt(interrupt_at)] * bool(interrupt_at)
    return evener.Recipe(
        model=lambda: model(hidden), data=data, optimizer=OPTIMIZERS[optimizer], ema_decay=0.9,
        lr_scheduler=lambda made, _: torch.optim.lr_scheduler.ExponentialLR(made, 0.999), hooks=lambda: hooks,
    )
"""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output, which is one JSON object."""
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value


class Run:
    """One command in a directory of its own; its temporary files have another one, `tmp`.

    Leaving the `with` block kills it and every process that it was seen to start.
    """

    def __init__(self, command: Sequence[object], cwd: Path, **environment: str) -> None:
        # Of a short name: loader processes make sockets there, whose names may have 108 bytes.
        self.tmp = Path(tempfile.mkdtemp(prefix="ev"))
        weakref.finalize(self, shutil.rmtree, self.tmp, ignore_errors=True)
        everything = {
            **os.environ, "TMPDIR": str(self.tmp), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **environment,
        }  # fmt: skip
        self.started, self._cwd = time.monotonic(), cwd
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=everything, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._me = psutil.Process(self.process.pid)
        self._tasks: dict[int, psutil.Process] = {}
        self._said: dict[str, list[str]] = {"out": [], "err": []}
        self._news = threading.Condition()
        streams = {"out": self.process.stdout, "err": self.process.stderr}
        self._readers = [threading.Thread(target=self._read, args=item) for item in streams.items()]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: Any) -> None:
        for line in stream:
            with self._news:
                self._said[name].append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def said(self) -> str:
        with self._news:
            return "".join(self._said["out"] + self._said["err"])

    def wait_for(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """Until the command has said this."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                text = "".join(self._said["out"] + self._said["err"])
                if match := re.search(pattern, text):
                    return match
                left = deadline - time.monotonic()
                assert left > 0, f"no {pattern!r} within {seconds} s in:\n{text}"
                assert any(reader.is_alive() for reader in self._readers), f"it ended without {pattern!r}:\n{text}"
                self._news.wait(min(left, 0.2))

    def tasks(self) -> list[psutil.Process]:
        """All processes below the command; also those seen before and gone since."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self._me.children(recursive=True):
                self._tasks.setdefault(child.pid, child)
        return list(self._tasks.values())

    def names(self) -> set[str]:
        """Of the tasks that live."""
        return {name for name in map(task_of, alive(self.tasks())) if ":" in name}

    def task(self, name: str) -> psutil.Process:
        """The live process of a task: "worker:1"."""
        for process in self.tasks():
            with contextlib.suppress(psutil.Error):
                if process.is_running() and task_of(process) == name:
                    return process
        raise AssertionError(f"no process of {name} among {self.tasks()}")

    def signal(self, number: int) -> None:
        self.tasks()
        self.process.send_signal(number)

    def finish(self, seconds: float = 90.0) -> Done:
        """Until it ends by itself."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            seen = self._look_into()
            raise AssertionError(f"it did not end within {seconds} s:\n{self.said()}\n{seen}") from None
        took = time.monotonic() - self.started
        for reader in self._readers:
            reader.join(10.0)
            assert not reader.is_alive(), "a task holds the command's output open"
        return Done(code, "".join(self._said["out"]), "".join(self._said["err"]), took)

    def _look_into(self) -> str:
        """What each process is doing, for who wants to know why it does not end. It is the end of them all.

        At SIGABRT Python's faulthandler writes the stacks of all threads: of a task into its log, of the command and
        the fork server to where they write errors.
        """
        told = []
        for process in [*reversed(alive(self.tasks())), self._me]:  # who has started another ends after it
            with contextlib.suppress(psutil.Error):
                spent = sum(process.cpu_times()[:2])
                told.append(f"{process.pid} {' '.join(process.cmdline())}: {process.status()}, {spent:.1f} s of a core")
                process.send_signal(signal.SIGABRT)
                process.send_signal(signal.SIGCONT)
        psutil.wait_procs(self.tasks(), 5.0)
        for log in sorted(self._cwd.rglob("logs/*.log")):
            told.append(f"--- {log}, its last lines:\n{log.read_text(errors='replace')[-6000:]}")
        return "\n".join(told)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.tasks(), self._me]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10.0)
        for reader in self._readers:
            reader.join(10.0)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def evener(cwd: Path, *args: object, seconds: float = 90.0, **environment: str) -> Done:
    """Run `evener ARGS` to its end."""
    with Run([*EVENER, *args], cwd, **environment) as run:
        return run.finish(seconds)


def start(cwd: Path, *args: object) -> Run:
    """Start `evener ARGS`; use it in a `with`."""
    return Run([*EVENER, *args], cwd)


def script(cwd: Path, text: str, name: str = "script.py", seconds: float = 90.0) -> Done:
    """Run a Python script to its end."""
    (cwd / name).write_text(text)
    with Run([sys.executable, name], cwd) as run:
        return run.finish(seconds)


def here(capfd: Any, *args: object) -> Done:
    """`evener ARGS` in this very process: as the command, without the second that importing PyTorch costs."""
    from evener.cli.main import main

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    capfd.readouterr()
    began = time.monotonic()
    code = main([str(arg) for arg in args])
    said = capfd.readouterr()
    assert {number: signal.getsignal(number) for number in before} == before, "a signal handler was left"
    return Done(code, said.out, said.err, time.monotonic() - began)


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll a condition that nobody announces; fail when it is not met in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def task_of(process: psutil.Process) -> str:
    """What `ps` shows last of its command: a task's name, "worker:1"."""
    try:
        return (" ".join(process.cmdline()).split() or [""])[-1]
    except psutil.NoSuchProcess:  # it has ended since somebody asked whether it lives
        return ""


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that nobody has waited for yet does not."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def belongings(processes: Iterable[psutil.Process]) -> remains.Belongings:
    """What these processes hold now that could outlive them."""
    return remains.belongings(process.pid for process in processes)


def check_nothing_left(run: Run, held: remains.Belongings) -> None:
    """No process, port, socket, shared memory or temporary file of a run is left."""
    until(lambda: not alive(run.tasks()), PATIENCE, f"every task ends ({run.tasks()})")
    until(lambda: not held.left(), PATIENCE, f"nothing is left of {held}")
    # PyTorch makes an empty directory for its compiler when an optimizer is made; all else would be ours.
    assert [path for path in run.tmp.rglob("*") if not path.match("torchinductor_*")] == []


def checkpoint_files(directory: Path) -> dict[str, bytes]:
    """A checkpoint's tensors, as bytes, by file name."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own at `place`, which is made; the test is skipped where that takes more rights than it has."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
