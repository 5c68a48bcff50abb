"""The framing between hosts: what is written is read, however it is cut; what is not written so is refused."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given, settings, strategies as st

from evener.transport import tcp_wire
from evener.transport.channel import MAX_HEADER, MAX_PARTS
from evener.transport.tcp_seal import KEY_BYTES, Sealing
from evener.transport.tcp_wire import (
    ALIGNMENT,
    BYE,
    CHUNK,
    GREETING,
    HEAD,
    OPEN,
    PAYLOAD,
    PLAIN,
    Greeting,
    Reader,
    Received,
    greeting,
    pack_sizes,
    pieces,
    unpack_sizes,
    written,
    written_bytes,
)

KEY = bytes(range(KEY_BYTES))


def said(kind: int, header: bytes, payload: list[bytes], sealing: Sealing | None = None) -> bytes:
    """A message as it travels."""
    views = [memoryview(part) for part in payload]
    return b"".join(bytes(part) for parts in written(kind, header, views, sealing) for part in parts)


def feed(reader: Reader, data: bytes, cuts: list[int]) -> list[Received]:
    """Give a reader bytes, in pieces of these lengths (again and again)."""
    found, at, turn = [], 0, 0
    while at < len(data):
        target = reader.target()
        assert len(target) > 0
        count = min(len(target), cuts[turn % len(cuts)], len(data) - at)
        target[:count] = data[at : at + count]
        at, turn = at + count, turn + 1
        if (message := reader.took(count)) is not None:
            found.append(message)
    return found


def reader_for(payload: list[bytes], *, keys: bool) -> tuple[Reader, list[bytearray]]:
    reader, boxes = Reader(Sealing(KEY) if keys else None), [bytearray(len(part)) for part in payload]
    reader.targets = [memoryview(box) for box in boxes]
    return reader, boxes


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces in few bytes."""
    monkeypatch.setattr(tcp_wire, "CHUNK", 1000)


MESSAGES = st.lists(st.tuples(st.sampled_from([PLAIN, PAYLOAD, OPEN, BYE]), st.binary(max_size=300)), max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    messages=MESSAGES,
    payload=st.lists(st.binary(max_size=2500), max_size=3),
    cuts=st.lists(st.integers(1, 1500), min_size=1, max_size=5),
    keys=st.booleans(),
)
def test_what_was_written_is_read_however_the_stream_is_cut(messages, payload, cuts, keys) -> None:
    sealing = Sealing(KEY) if keys else None
    stream = b"".join(said(kind, header, payload if kind == PAYLOAD else [], sealing) for kind, header in messages)
    reader, boxes = reader_for(payload, keys=keys)

    assert feed(reader, stream, cuts) == [Received(kind, header) for kind, header in messages]
    if any(kind == PAYLOAD for kind, _ in messages):
        assert [bytes(box) for box in boxes] == payload


@settings(max_examples=100, deadline=None)
@given(
    header=st.binary(max_size=50),
    payload=st.lists(st.binary(max_size=2500), max_size=3),
    where=st.floats(0, 1, exclude_max=True),
    what=st.sampled_from(["changed", "left out", "said twice"]),
)
def test_a_sealed_stream_that_anyone_touched_ends_there(header, payload, where, what) -> None:
    """Also the kind and the length in the clear: they are bound to what is sealed."""
    stream = bytearray(said(PAYLOAD, header, payload, Sealing(KEY)))
    at = int(where * len(stream))
    stream += bytes(100)  # so that it is not short of bytes
    if what == "changed":
        stream[at] ^= 1
    elif what == "left out":
        del stream[at]
    else:
        stream[at:at] = stream[at : at + 1]
    reader, _ = reader_for(payload, keys=True)
    with pytest.raises(ValueError, match=r"."):
        found = feed(reader, bytes(stream), [700])
        assert found == [], "taken although it was changed"
        raise ValueError("cut short: it waits for more, and gets nothing out")


def test_a_sealed_message_said_again_or_in_another_order_is_refused() -> None:
    sealing = Sealing(KEY)
    one, two = said(PLAIN, b"one", [], sealing), said(PLAIN, b"two", [], sealing)
    for stream in (one + one, two + one, two):
        with pytest.raises(ValueError, match="not what its key would send"):
            feed(Reader(Sealing(KEY)), stream, [100])
    assert feed(Reader(Sealing(KEY)), one + two, [100]) == [Received(PLAIN, b"one"), Received(PLAIN, b"two")]


def test_pieces_of_a_payload_cannot_change_places() -> None:
    payload = [bytes(1000), b"x" * 1000]
    stream = said(PAYLOAD, b"", payload, Sealing(KEY))
    head, piece = ALIGNMENT, 1016
    swapped = stream[:head] + stream[head + piece :] + stream[head : head + piece]
    assert len(swapped) == len(stream)
    with pytest.raises(ValueError, match="not what its key"):
        feed(reader_for(payload, keys=True)[0], swapped, [5000])


def test_a_payload_goes_straight_to_its_place() -> None:
    """Where no keys are, the bytes of the stream are read into the ranges themselves."""
    box = bytearray(5000)
    reader = Reader(None)
    reader.targets = [memoryview(box)]
    stream = said(PAYLOAD, b"push", [b"y" * 5000])
    feed(reader, stream[:-5000], [100])
    target = reader.target()
    assert len(target) == 5000
    target[:10] = b"0123456789"
    assert box[:10] == b"0123456789"
    reader.took(10)
    assert len(reader.target()) == 4990


@pytest.mark.parametrize("keys", [False, True])
def test_the_memory_of_a_payload_is_free_when_its_reader_is_forgotten(keys: bool) -> None:
    """Without the garbage collector: a server may lose many peers before that comes by."""
    box = mmap.mmap(-1, 5000)
    reader = Reader(Sealing(KEY) if keys else None)
    reader.targets = [memoryview(box)]
    feed(reader, said(PAYLOAD, b"", [bytes(5000)], Sealing(KEY) if keys else None)[:2000], [900])
    with pytest.raises(BufferError):
        box.close()
    del reader
    box.close()


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (HEAD.pack(4, 0), "a message of kind 4"),
        (HEAD.pack(2**32 - 1, 0), "a message of kind"),
        (HEAD.pack(PLAIN, MAX_HEADER + 1), "a header of 131073 bytes"),
        (HEAD.pack(PLAIN, 2**32 - 1), "a header of 4294967295 bytes"),
        (HEAD.pack(PAYLOAD, 4), "a payload before it was admitted"),
    ],
)
def test_a_head_that_no_peer_would_send_is_refused_before_memory_is_taken_for_it(head: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        feed(Reader(None), head, [3])


def test_a_reader_may_have_a_lower_limit() -> None:
    reader = Reader(None, limit=10)
    assert feed(reader, said(OPEN, b"x" * 10, []), [100]) == [Received(OPEN, b"x" * 10)]
    with pytest.raises(ValueError, match="11 bytes, where 10"):
        feed(reader, said(OPEN, b"x" * 11, []), [100])


@given(header=st.binary(max_size=100), payload=st.lists(st.binary(max_size=2500), max_size=3), keys=st.booleans())
def test_the_length_of_a_message_is_known_before_it_is_made(header, payload, keys) -> None:
    stream = said(PAYLOAD, header, payload, Sealing(KEY) if keys else None)
    assert written_bytes(PAYLOAD, header, [memoryview(part) for part in payload], sealed=keys) == len(stream)


@given(header=st.binary(max_size=300), keys=st.booleans())
def test_a_payload_begins_where_the_kernel_copies_it_fast(header: bytes, keys: bool) -> None:
    """A page of the kernel begins with what is sent before it: 1 to 15 bytes more than a multiple of 64 cost much."""
    stream = said(PAYLOAD, header, [b"y" * 5000], Sealing(KEY) if keys else None)
    sealed = 5000 + 5 * 16 if keys else 5000
    assert (len(stream) - sealed) % ALIGNMENT == 0
    assert len(said(PLAIN, header, [], Sealing(KEY) if keys else None)) == HEAD.size + len(header) + 16 * keys


@pytest.mark.parametrize("keys", [False, True])
def test_what_fills_a_header_up_says_nothing(keys: bool) -> None:
    head, zeros = HEAD.pack(PAYLOAD, 4), ALIGNMENT - HEAD.size - 4 - 16 * keys
    first = memoryview(bytearray(b"push" + bytes(zeros - 1) + b"1"))
    if keys:
        plain, first = first, memoryview(bytearray(len(first) + 16))
        Sealing(KEY).seal(plain, head, first)
    with pytest.raises(ValueError, match="filled up with something else than zeros"):
        feed(reader_for([b"y" * 100], keys=keys)[0], head + bytes(first), [100])


@pytest.mark.parametrize("nbytes", [10, 1000, 5000])
def test_a_reader_takes_no_more_memory_for_a_sealed_piece_than_the_longest_has(nbytes: int) -> None:
    reader, _ = reader_for([bytes(nbytes), b"x"], keys=True)
    stream = said(PAYLOAD, b"", [bytes(nbytes), b"x"], Sealing(KEY))
    feed(reader, stream[:ALIGNMENT], [100])
    assert reader.target().obj is not None and len(reader.target().obj) == min(nbytes, 1000) + 16


def test_pieces_cover_every_range_and_none_is_empty() -> None:
    data = [b"a" * 2500, b"", b"b" * 1000]
    found = [bytes(piece) for piece in pieces([memoryview(part) for part in data], 1000)]
    assert [len(piece) for piece in found] == [1000, 1000, 500, 1000] and b"".join(found) == b"".join(data)
    assert CHUNK == 1 << 19


# Greetings


def greet(data: bytes) -> bool | None:
    reader, known = Greeting(), None
    for byte in data:
        assert known is None
        reader.target()[:1] = bytes([byte])
        known = reader.took(1)
    return known


def test_a_greeting_tells_whether_its_end_has_keys() -> None:
    assert greet(greeting(keys=True)) is True
    assert greet(greeting(keys=False)) is False
    assert greet(greeting(keys=True)[:-1]) is None
    assert len(greeting(keys=True)) == GREETING.size == 8


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xff", "of ZeroMQ, which an older evener speaks"),
        (b"G", "no greeting of evener"),
        (b"EVTX", "no greeting of evener"),
        (b"EVTC\x09", "transport version 9, we speak 2"),
        (b"EVTC\x02\x02\0\0", "malformed"),
        (b"EVTC\x02\x01\0\1", "malformed"),
    ],
)
def test_what_is_no_greeting_is_known_at_its_first_wrong_byte(data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        greet(data)


# Sizes


@given(sizes=st.lists(st.integers(0, 2**64 - 1), max_size=MAX_PARTS))
def test_sizes_are_read_as_they_were_packed(sizes: list[int]) -> None:
    assert list(unpack_sizes(pack_sizes(sizes))) == sizes


@pytest.mark.parametrize("header", [b"1234567", bytes(8 * MAX_PARTS + 8)])
def test_a_list_of_sizes_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="a list of sizes"):
        unpack_sizes(header)
