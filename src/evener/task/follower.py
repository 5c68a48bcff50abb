"""How a ps task other than ps:0 finds the one that leads, at its start and whenever it was lost."""

from __future__ import annotations

import time
from collections.abc import Callable

from evener import chaos, errors
from evener.report import Reporter
from evener.server.follow import Follower
from evener.server.links import Links
from evener.server.shard import Shard
from evener.settings import Settings
from evener.state.checkpoint import load
from evener.task.build import open_store
from evener.task.wiring import Dialer
from evener.transport.channel import Channel, Memory, Ranges
from evener.waiting import Waiting
from evener.wire import codec
from evener.wire.messages import Follow, Lead, Refused

#: Seconds of one attempt, at most; between two of them a person is told, and may end it.
ATTEMPT = 1.0
#: What a person can do who sees us wait.
START_LEADER = "start ps:0, or look at its log."


class LeaderLine:
    """The way to ps:0.

    Args:
        address: waits for the address of ps:0; asked at each attempt, since a restarted one may have another.
    """

    def __init__(  # noqa: PLR0913 - what the way needs, each once
        self,
        index: int,
        settings: Settings,
        *,
        run: str,
        address: Callable[[], str],
        stop_asked: Callable[[], str],
        report: Reporter,
    ) -> None:
        self.index, self.settings, self.run = index, settings, run
        self._address, self._stop_asked, self._report = address, stop_asked, report
        self._dial = Dialer(settings, f"ps:{index}", run)

    def open(self, layout: str) -> tuple[Channel, Lead]:
        """A link on which ps:0 has agreed that we follow. Waits for it aloud.

        Raises:
            Unavailable: it was not there for longer than the stall timeout.
            EvenerError: it refuses us.
        """
        wait = Waiting(
            f"ps:{self.index}", self.settings.stall_timeout, self._report, time.monotonic, silent=ATTEMPT,
            stopped=self._stop_asked,
        )  # fmt: skip
        nothing = Ranges(Memory(0), ())
        while True:
            address, channel, duplicate = self._address(), None, None
            try:
                channel = self._dial(0, address, nothing, nothing, ATTEMPT)
                channel.send(codec.encode(Follow(self.index, self.run, layout)))
                return channel, self._answer(channel, wait)
            except (errors.Unavailable, errors.PeerGone) as error:
                why = error.why or error.what
            except errors.DuplicateTask as error:  # an old link of ours that ps:0 still believes in
                why, duplicate = error.what, error
            if channel is not None:
                channel.close()
            if duplicate is not None and wait.seconds > self.settings.heartbeat_timeout + 5:
                raise duplicate
            wait.still(f"ps:0 at {address}: {why}", fix=START_LEADER)
            time.sleep(0.1)

    def _answer(self, channel: Channel, wait: Waiting) -> Lead:
        while True:
            header = channel.receive(ATTEMPT)
            if header is None:
                wait.still("ps:0 to answer", fix=START_LEADER)
                continue
            answer = codec.decode(header)
            if isinstance(answer, Refused):
                raise codec.raised(answer)
            if not isinstance(answer, Lead):
                raise errors.ProtocolError(f"ps:0 answered a Follow with {type(answer).__name__}.")
            return answer


def follower(line: LeaderLine, links: Links, shard: Shard, settings: Settings, report: Reporter) -> Follower:
    """Follow ps:0 from the step that it names."""
    channel, lead = line.open(shard.state.parameters.layout.fingerprint)
    chaos.point("server.following")
    store = open_store(settings, writable=False)
    contents = None
    if lead.version > 0:
        contents = load(store.path(lead.version))[1]
        shard.state.step = lead.version
    return Follower(
        links, shard, channel, index=line.index, settings=settings, store=store, generation=lead.generation,
        restored=contents, report=report, clock=time.monotonic,
    )  # fmt: skip
