"""One ps task: its parts put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from evener import errors, transport
from evener.checkpoint import atomic_write, load
from evener.launch.build import VERSION, Built, beginning, checkpoints, open_store
from evener.report import Published, Reporter
from evener.saver import Saver, Schedule
from evener.server.course import Setup
from evener.server.follow import Follower
from evener.server.lead import Leader
from evener.server.links import Expected, Links
from evener.server.serve import serve
from evener.server.shard import Shard
from evener.settings import Settings
from evener.state import State
from evener.transport.channel import Channel, Listener, Memory, Ranges
from evener.wire import codec
from evener.wire.messages import Follow, Lead


class Grants(msgspec.Struct):
    """Which lives were granted, over all runs of a logdir. Never rolls back, unlike parameters (RELIABILITY P4)."""

    generation: int = 0
    epochs: dict[int, int] = {}


def schedule_of(settings: Settings) -> Schedule:
    return Schedule(
        every_seconds=settings.save_checkpoint_secs,
        every_steps=settings.save_checkpoint_steps,
        keep=settings.keep,
    )


def listen(settings: Settings, index: int) -> list[Listener]:
    """This task's listeners: shared memory for tasks of this host, or ZeroMQ."""
    if settings.ps_hosts:
        return [transport.listen("zeromq", f"tcp://{_on_loopback(settings.ps_hosts[index])}")]
    return [transport.listen("zeromq" if settings.transport == "zeromq" else "shared")]


def _on_loopback(address: str) -> str:
    """Links carry no keys yet, so nobody but this machine may reach them."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not host:
        raise errors.ConfigError(f"{address!r} is no address.", fix="write HOST:PORT, for example 127.0.0.1:2222.")
    if host != "localhost" and not host.startswith("127."):
        raise errors.ConfigError(
            f"refusing to listen on {address}.",
            why="links between machines have no keys yet: anyone who reaches the port could change the model.",
            fix="use an address of 127.0.0.0/8.",
        )
    return address


def run_server(  # noqa: PLR0913 - what a task is told, each once
    index: int,
    built: Built,
    settings: Settings,
    *,
    run: str,
    leader: Callable[[], str],
    stop_asked: Callable[[], str],
    report: Reporter,
) -> None:
    """Serve shard `index` until the run is over. `leader` waits for the address of ps:0."""
    listeners = listen(settings, index)
    # Told before the state is made: PyTorch's first optimizer imports for a second, in which workers can come.
    report(Published(f"ps:{index}", listeners[0].address))
    state = State(built.model, built.recipe, built.layout, shard=index)
    links = Links(listeners, built.layout, index, Expected(run=run, recipe=built.fingerprint, evener=VERSION))
    if index == 0:
        serve(_leader(links, Shard(state), settings, report), stop_asked)
    else:
        serve(_follower(links, Shard(state), index, settings, address=leader(), run=run, report=report), stop_asked)


def _leader(links: Links, shard: Shard, settings: Settings, report: Reporter) -> Leader:
    store = open_store(settings)
    saver = Saver(store, schedule_of(settings), shards=settings.ps, clock=time.monotonic)
    restored = beginning(store, saver, settings, "ps:0", report)
    path = checkpoints(settings) / "grants.json"
    grants = _grants(path)
    grants.generation += 1

    def keep_epochs(epochs: dict[int, int]) -> None:
        grants.epochs = epochs
        atomic_write(path, [msgspec.json.encode(grants)])

    keep_epochs(grants.epochs)
    setup = Setup(
        settings=settings, saver=saver, report=report, clock=time.monotonic, restored=restored,
        generation=grants.generation, epochs=dict(grants.epochs), keep_epochs=keep_epochs, evener=VERSION,
    )  # fmt: skip
    return Leader(links, shard, setup)


def _grants(path: Path) -> Grants:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Grants)
    except FileNotFoundError:
        return Grants()
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.CheckpointError(f"{path} is damaged: {error}.", fix="remove it if no task is running.") from error


def _follower(  # noqa: PLR0913 - what a follower is told, each once
    links: Links, shard: Shard, index: int, settings: Settings, *, address: str, run: str, report: Reporter
) -> Follower:
    nothing = Ranges(Memory(0), ())
    channel = transport.connect(address, nothing, nothing)
    channel.send(codec.encode(Follow(index, run, shard.state.parameters.layout.fingerprint)))
    lead = _answer(channel, address)
    store = open_store(settings, writable=False)
    contents = None
    if lead.version > 0:
        contents = load(store.path(lead.version))[1]
        shard.state.step = lead.version
    return Follower(
        links, shard, channel, index=index, settings=settings, store=store, generation=lead.generation,
        restored=contents, report=report, clock=time.monotonic,
    )  # fmt: skip


def _answer(channel: Channel, address: str) -> Lead:
    header = channel.receive(60.0)
    if header is None:
        raise errors.Unavailable(f"ps:0 ({address}) has not answered for 60 s.", fix="look at the log of ps:0.")
    answer = codec.decode(header)
    if not isinstance(answer, Lead):
        raise errors.ProtocolError(f"ps:0 answered a Follow with {type(answer).__name__}.")
    return answer
