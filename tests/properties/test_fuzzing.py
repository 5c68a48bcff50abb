"""A short run of `make fuzz`, always with the same frames; and that each target sees what it is there to see."""

from __future__ import annotations

import logging
from collections import Counter
from random import Random

import fuzz_port
import fuzzing
import msgspec
import pytest
from fuzzing import fuzz_codec, fuzz_servers, measured
from mutations import Mutator, rows

from evener import transport
from evener.server.lead import Leader
from evener.transport import tcp
from evener.wire import codec
from evener.wire.messages import Lost


@pytest.fixture(autouse=True)
def silent() -> object:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_the_same_seed_gives_the_same_frames() -> None:
    corpus = fuzzing.a_corpus()
    frames = [[Mutator(Random(seed)).frame(corpus) for _ in range(50)] for seed in (1, 1, 2)]
    assert frames[0] == frames[1] != frames[2]


def test_the_codec_refuses_or_understands_and_takes_no_memory_for_it() -> None:
    story = measured(fuzz_codec, 20_000, 20261120)
    for name in ("refused", "Hello", "described", "Push", "Released", "Decided"):
        assert name in story


def test_servers_live_and_train_beside_a_liar_and_a_stranger() -> None:
    story = measured(fuzz_servers, 4_000, 20261122)
    for name in ("cut off", "valid pushes", "valid hellos", "valid halts"):
        assert name in story


@pytest.mark.parametrize(
    ("target", "frames"),
    [(fuzz_port.fuzz_port, 2000), (fuzz_port.fuzz_port_with_keys, 1000), (fuzz_port.fuzz_shared, 500)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_door_stays_open_for_a_worker_whatever_others_do_there(target: object, frames: int) -> None:
    measured(target, frames, 20261120)


# --- each target sees what it is there to see


def test_a_codec_that_lets_another_error_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_UNREADABLE", (msgspec.MsgspecError, UnicodeDecodeError))
    with pytest.raises(AssertionError, match="RecursionError"):
        fuzz_codec(30_000, 1)


def test_a_bomb_that_goes_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = rows(1 << 20)  # more than what a long suite has freed and Python keeps
    plain = msgspec.msgpack.Decoder(list[tuple[str, tuple[int, ...], str, bool]])
    monkeypatch.setattr(codec, "_specs_decoder", plain)
    monkeypatch.setattr(fuzzing, "CAP", 16 << 20)

    def unpack(frames: int, seed: int) -> Counter[str]:
        return Counter(tensors=len(codec.unpack_specs(bomb)) if seed == 1 else 0)

    with pytest.raises(AssertionError, match="peak memory grew"):
        measured(unpack, 1, 1)


def test_a_server_that_lets_a_stranger_act_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def gullible(self: Leader, link: object, message: object) -> None:
        if isinstance(message, Lost) and message.worker in self.links.seats:
            self._leave(self.links.seats[message.worker])
        else:
            handle(self, link, message)  # type: ignore[arg-type]

    handle = Leader.handle
    monkeypatch.setattr(Leader, "handle", gullible)
    with pytest.raises(AssertionError, match="Lost"):
        fuzz_servers(20_000, 1)


def test_a_server_that_takes_any_lease_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evener.server.links.Seat.may_push", lambda seat, push: seat.joined and seat.awaits is None)
    with pytest.raises(AssertionError, match="Push"):
        fuzz_servers(40_000, 1)


def test_a_server_that_falls_over_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "cut", lambda text, limit: 1 / 0)  # of each goodbye: hundreds of these frames are one
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        fuzz_servers(20_000, 2)


def test_a_port_that_lets_in_who_has_no_key_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    listen, connect, greeting = tcp.listen, transport.connect, fuzz_port.greeting
    opening = fuzz_port.HEAD.pack(fuzz_port.OPEN, 8) + fuzz_port.pack_sizes([fuzz_port.NBYTES])
    monkeypatch.setattr(tcp, "listen", lambda keys: listen(insecure=True))
    monkeypatch.setattr(transport, "connect", lambda *parts, keys: connect(*parts, keys=None))
    monkeypatch.setattr(fuzz_port, "greeting", lambda keys: greeting(keys=False))
    monkeypatch.setattr(fuzz_port.Crowd, "first_words", lambda self: opening)
    with pytest.raises(AssertionError, match="without a key"):
        fuzz_port.fuzz_port_with_keys(2000, 1)
