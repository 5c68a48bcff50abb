"""The codec: what was said is what is heard, and nothing that is heard can do harm."""

import random
import tracemalloc
import types
import typing
import zlib

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from evener import errors
from evener.errors import ProtocolError, VersionError
from evener.wire import codec
from evener.wire.layout import Spec
from evener.wire.messages import PROTOCOL, AnyMessage, Decided, Halt, Hello, Push, Refused, Released
from evener.wire.words import Identity, Message

MESSAGES = typing.get_args(AnyMessage)
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EvenerError)]

PLAIN = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=40),
    bool: st.booleans(),
}


def bounded(kind, meta):
    """Values of a field that the wire bounds."""
    if kind is str:
        return st.text(max_size=20)
    if kind is bytes:
        return st.binary(max_size=20)
    if typing.get_origin(kind) is dict:
        return st.dictionaries(*map(values, typing.get_args(kind)), max_size=4)
    if typing.get_origin(kind) is list:
        return st.lists(values(typing.get_args(kind)[0]), max_size=4)
    lowest = meta.ge if meta.gt is None else meta.gt + 1
    return st.integers(lowest, meta.le if meta.lt is None else meta.lt - 1)


def values(kind):
    """A strategy for a field's type, down to nested messages."""
    if kind in PLAIN:
        return PLAIN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return bounded(*arguments)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=4)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if entry is type(None) else values(entry) for entry in arguments])
    assert issubclass(kind, msgspec.Struct), kind
    return st.builds(
        kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
    )


def specs():
    rows = st.tuples(
        st.text(max_size=8), st.lists(st.integers(0, 2**40)).map(tuple), st.sampled_from(["float32"]), st.booleans()
    )
    return st.lists(rows.map(lambda row: Spec(*row)), max_size=6)


def heard(header):
    """The message, or the refusal of a header; any other error is a failure."""
    try:
        return codec.decode(header)
    except (ProtocolError, VersionError) as refused:
        assert refused.what
        return refused


# --- what was said is what is heard


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_as_it_went(kind):
    @settings(max_examples=50)
    @given(values(kind))
    def comes_back(message):
        assert codec.decode(codec.encode(message)) == message
        assert codec.decode(memoryview(codec.encode(message))) == message

    comes_back()


def test_every_message_that_is_defined_is_one_that_can_be_heard():
    assert set(MESSAGES) == set(Message.__subclasses__())


@given(specs())
def test_a_models_description_comes_back_as_it_went(described):
    assert codec.unpack_specs(codec.pack_specs(described)) == described


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_with_its_class_and_its_three_sentences(kind):
    answer = codec.refusal(kind("w is [3].", why="it is [4] there.", fix="make it [4]."))
    error = codec.raised(codec.decode(codec.encode(answer)))

    assert type(error) is kind
    assert (error.what, error.why, error.fix) == ("w is [3].", "it is [4] there.", "make it [4].")


@pytest.mark.parametrize("kind", ["SystemExit", "annotations", "__name__", "", "KeyError", "os"])
def test_an_answer_of_an_unknown_kind_becomes_a_protocol_error(kind):
    error = codec.raised(Refused(kind, "what", "why", "fix"))

    assert type(error) is ProtocolError
    assert (error.what, error.why, error.fix) == ("what", "why", "fix")


# --- whatever is heard, the listener lives


@given(st.binary(max_size=64))
def test_bytes_of_anybody_else_are_refused(garbage):
    assert isinstance(heard(garbage), ProtocolError | VersionError)


@given(st.binary(max_size=64))
def test_garbage_behind_the_right_prefix_is_a_message_or_a_protocol_error(garbage):
    assert isinstance(heard(codec.PREFIX + garbage), ProtocolError | Message)


@pytest.mark.parametrize("header", [b"", b"ev", b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"])
def test_who_does_not_begin_with_our_magic_talks_to_the_wrong_port(header):
    with pytest.raises(ProtocolError, match="does not begin an evener message") as refused:
        codec.decode(header)
    assert refused.value.why == "something else talks to this port."


def test_another_version_is_refused_with_both_numbers():
    other = codec.MAGIC + bytes([PROTOCOL + 1]) + codec.encode(Halt(Identity(0), "x"))[5:]

    with pytest.raises(VersionError, match=f"speaks protocol {PROTOCOL + 1}, this task speaks {PROTOCOL}") as refused:
        codec.decode(other)
    assert refused.value.fix == "install the same evener everywhere."
    with pytest.raises(VersionError, match="protocol \\?"):
        codec.decode(codec.MAGIC)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93\xa4Halt\x93\x01\x01\x01\xa2\xff\xfe",  # a text that is not UTF-8
        b"\x93\xa4\xff\xfe\xfd\xfc\x01\x01",  # so is the message's name
        b"\x92\xa4Nope\x01",  # no such message
        b"\x91\xa4Push",  # a message without its fields
        b"\x96\xa7Decided\x01\xdd\xff\xff\xff\xff",  # a list of four billion entries
        b"\x94\xa4Halt\x93\x01\x01\x01\xdb\xff\xff\xff\xff",  # a text of four billion bytes
        b"\x91" * 5000,  # very deep
        b"\xc1",  # never used in msgpack
    ],
)
def test_each_kind_of_lie_about_lengths_names_and_texts_is_a_protocol_error(body):
    with pytest.raises(ProtocolError, match="cannot be read"):
        codec.decode(codec.PREFIX + body)


def test_a_message_with_something_behind_it_is_refused():
    with pytest.raises(ProtocolError, match="cannot be read"):
        codec.decode(codec.encode(Halt(Identity(0), "x")) + b"\x00")


def test_twenty_thousand_mutations_of_real_messages_raise_nothing_else():
    # From the random module, not from hypothesis: 20,000 examples in a second or two.
    rng = random.Random(20260801)
    identity = Identity(3, 2, 1)
    model = codec.pack_specs([Spec("w", (3, 4), "float32", True)])
    hello = Hello(identity, "run", "0.1", "mnist", "abcd", model, 60000, "host", 812)
    release = Released(7, 8, 9, "reached step 10", True, "computed at version 2, now 3", 1, 4, 0.5)
    seeds = [
        codec.encode(message)
        for message in (
            hello, release, Push(identity, 7, 8, 9, 0.25, 100),
            Decided(8, [(0, 1, 7)], [(1, 1, 6)], [(0, 1, release)], [(2, 1)]), Refused("Fenced", "what", "why", "fix"),
        )
    ]  # fmt: skip

    outcomes = {type(heard(_mutated(rng.choice(seeds), rng))) for _ in range(20_000)}

    assert {ProtocolError, VersionError} < outcomes  # and some mutations are legal messages
    assert outcomes & set(MESSAGES)


def _mutated(header: bytes, rng: random.Random) -> bytes:
    changed = bytearray(header)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at:]  # cut short
            case 3:
                changed[at:at] = rng.randbytes(rng.randint(1, 6))
            case _:
                changed[at:at] = changed[at : at + rng.randint(1, 20)]  # said twice
    return bytes(changed)


# --- a model's description


def test_a_description_that_unpacks_to_more_than_16_mb_is_refused_before_it_takes_the_memory():
    packer = zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(64)), packer.flush()])  # 64 MB in 64 KB
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="larger than 16 MB"):
            codec.unpack_specs(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20


@given(st.binary(max_size=64))
def test_garbage_for_a_description_is_a_protocol_error(garbage):
    for packed in (garbage, zlib.compress(garbage)):
        try:
            codec.unpack_specs(packed)
        except ProtocolError as refused:
            assert refused.what


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\xdd\xff\xff\xff\xff",  # four billion tensors
        b"\x91\x94\xa1w\xdd\x7f\xff\xff\xff",  # of two billion dimensions
        b"\x91\x94\xa1\xff\x90\xa1a\xc3",  # a name that is not UTF-8
        b"\x91" * 100_000,
        b"\xc0",
    ],
)
def test_each_kind_of_lie_in_a_description_is_a_protocol_error(plain):
    with pytest.raises(ProtocolError, match="description cannot be read"):
        codec.unpack_specs(zlib.compress(plain))


def test_a_description_cut_short_is_refused():
    packed = codec.pack_specs([Spec(f"layer{i}.weight", (i, 7), "float32", True) for i in range(50)])

    with pytest.raises(ProtocolError, match="description cannot be read"):
        codec.unpack_specs(packed[: len(packed) // 2])
