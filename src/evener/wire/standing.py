"""What is said to a task that listens before it is in a run, and between a client and a standing server."""

from __future__ import annotations

import msgspec

from evener.wire.words import Message


class Ping(Message, frozen=True):
    """Who are you, and how far? Asked before any Hello; changes nothing."""

    evener: str


class Pong(Message, frozen=True):
    """Who I am: a ps task of a run, or a standing server."""

    task: str  # "ps:0"
    evener: str
    standing: bool
    run: str = ""  # empty: a standing server without a job
    recipe: str = ""
    step: int = 0
    workers: list[int] = msgspec.field(default_factory=list)  # that have joined
    busy: str = ""  # a standing server: with what, since when, for whom


# --- a client and a standing server


class Reserve(Message, frozen=True):
    """Work for me until this link ends. Refused while another client is served."""

    task: str  # whom we take you for
    evener: str
    recipe: str
    host: str
    pid: int


class Reserved(Message, frozen=True):
    """The server is yours; what its task writes is on `host`, relative paths begin at `directory`."""

    host: str
    directory: str


class Relay(Message, frozen=True):
    """A piece of the stream between a launcher and its task (`control.control`): orders one way, reports the other."""

    data: bytes


class Dismiss(Message, frozen=True):
    """End your task at once."""


class TaskEnded(Message, frozen=True):
    """The task's process has ended: as it should (""), or how."""

    how: str
