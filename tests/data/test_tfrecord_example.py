"""Examples: TensorFlow's bytes, read exactly or refused; and a batch of them as tensors."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from make_tfrecord import EXAMPLES

from evener.data.tfrecord.example import Malformed, decode, encode
from evener.data.tfrecord.records import opened, walk
from evener.data.tfrecord.schema import Schema, UnfitRecord
from evener.errors import ConfigError

HERE = Path(__file__).parent

int64s = st.integers(-(2**63), 2**63 - 1)
values = st.one_of(
    st.lists(st.binary(max_size=40), max_size=5),
    st.lists(st.floats(width=32), max_size=5).map(lambda items: np.array(items, np.float32)),
    st.lists(int64s, max_size=40).map(lambda items: np.array(items, np.int64)),
)
examples = st.dictionaries(st.text(max_size=10), values, max_size=6)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        if isinstance(value, list):
            assert found[name] == value
        else:
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


def arrays(features):
    """What EXAMPLES says, as `decode` gives it."""
    made = {}
    for name, value in features.items():
        kind, items = value if isinstance(value, tuple) else (type(value[0]).__name__, value)
        made[name] = items if kind == "bytes" else np.array(items, np.float32 if kind == "float" else np.int64)
    return made


# --- one Example


@given(examples)
@example({"grand": [bytes(300_000)], "many": np.arange(-70_000, 70_000), "floats": np.ones(70_000, np.float32)})
def test_an_example_comes_back(features):
    same(decode(encode(features)), features)


@pytest.mark.parametrize("name", ["tensorflow.tfrecord", "tensorflow.tfrecord.gz"])
def test_what_tensorflow_wrote_is_read(name):
    found = [decode(record.data) for record in walk(opened(HERE / name), data=True)]

    assert len(found) == len(EXAMPLES) == 4
    for got, wrote in zip(found, EXAMPLES, strict=True):
        same(got, arrays(wrote))


def field(number, content, wire=2):
    return bytes([number << 3 | wire]) + (bytes([len(content)]) if wire == 2 else b"") + content


def entry(name, feature):
    return field(1, field(1, name) + field(2, feature))


def test_lists_that_are_not_packed_are_read_too():
    floats = b"".join(field(1, struct.pack("<f", value), wire=5) for value in (1.5, -2.0))
    numbers = field(1, b"\x05", wire=0) + field(1, b"\xac\x02\x07") + field(1, b"\xff" * 9 + b"\x01", wire=0)
    record = field(1, entry(b"f", field(2, floats)) + entry(b"n", field(3, numbers)))

    same(decode(record), {"f": np.array([1.5, -2], np.float32), "n": np.array([5, 300, 7, -1])})


def test_protocol_buffers_rules_for_what_comes_twice_or_is_unknown():
    last = entry(b"a", field(3, field(1, b"\x01"))) + entry(b"a", field(3, field(1, b"\x02")))
    assert decode(field(1, last))["a"].tolist() == [2]
    merged = entry(b"a", field(3, field(1, b"\x01")) + field(3, field(1, b"\x02")))
    assert decode(field(1, merged))["a"].tolist() == [1, 2]
    other_kind = entry(b"a", field(3, field(1, b"\x01")) + field(1, field(1, b"x")))
    assert decode(field(1, other_kind))["a"] == [b"x"]
    two = field(1, entry(b"a", field(1, field(1, b"x")))) + field(1, entry(b"b", field(1, field(1, b"y"))))
    assert decode(two) == {"a": [b"x"], "b": [b"y"]}
    unknown = (
        field(9, b"?") + field(10, bytes(8), wire=1) + field(11, bytes(4), wire=5) + field(12, b"\x81\x00", wire=0)
    )
    assert decode(unknown + field(1, unknown + entry(b"a", field(1, field(1, b"x") + unknown)))) == {"a": [b"x"]}
    assert decode(field(1, entry(b"empty", b""))) == {}
    assert decode(b"") == {}


@given(st.binary(max_size=60))
@example(b"\x0a\x05\x0a")
def test_any_bytes_are_an_example_or_malformed(data):
    for record in (data, field(1, data), field(1, entry(b"a", data))):
        try:
            decode(record)
        except Malformed as error:
            assert str(error)


@pytest.mark.parametrize(
    "record",
    [
        b"\x0a",  # no length
        b"\x0a\x05abc",  # ends early
        b"\x0b",  # a group
        b"\x02\x00",  # field 0
        b"\x80" * 11,  # a number without end
        field(1, entry(b"\xff", field(1, b""))),  # a name that is not UTF-8
        field(1, entry(b"f", field(2, field(1, b"abc")))),  # three quarters of a float
        field(1, entry(b"n", field(3, field(1, b"\x80")))),  # half a number
        field(1, entry(b"n", field(3, field(1, b"\x80" * 10 + b"\x01")))),  # a number of 11 bytes
    ],
)
def test_bytes_that_are_no_example_are_refused(record):
    with pytest.raises(Malformed):
        decode(record)


@given(examples)
@settings(max_examples=20)
def test_no_beginning_of_an_example_is_an_accident(features):
    record = encode(features)
    for stop in range(1, len(record)):
        with pytest.raises(Malformed):
            decode(record[:stop])


def test_what_people_write():
    wrote = {"text": "Ä", "texts": ["a", b"b"], "one": 3, "truth": True, "half": 0.5, "grid": np.eye(2, dtype="i1"),
             "tensor": torch.tensor([1.0, 2.0]), "none": [], "no floats": np.empty(0)}  # fmt: skip
    found = decode(encode(wrote))
    assert found["text"] == ["Ä".encode()]
    assert found["texts"] == [b"a", b"b"]
    assert found["none"] == []
    numbers = {name: value.tolist() for name, value in found.items() if not isinstance(value, list)}
    assert numbers == {"one": [3], "truth": [1], "half": [0.5], "grid": [1, 0, 0, 1], "tensor": [1, 2], "no floats": []}


@pytest.mark.parametrize("value", [None, [1, "a"], 2**63, np.array([2**63], np.uint64), 1e39, [[1], [1, 2]], 1j])
def test_what_an_example_cannot_hold_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="feature 'x' cannot be written"):
        encode({"x": value})


# --- a batch by a schema

SCHEMA = {"image": ("uint8", [2, 3]), "label": ("int64", []), "weight": ("float32", [2])}


def sample(number, **other):
    image = bytes(range(number % 200, number % 200 + 6))
    return {"image": image, "label": number, "weight": np.array([number, -number], np.float32)} | other


def test_a_batch_has_the_dtypes_and_shapes_of_the_schema():
    batch = Schema(SCHEMA).batch([encode(sample(1)), encode(sample(2))])

    assert batch["image"].tolist() == [[[1, 2, 3], [4, 5, 6]], [[2, 3, 4], [5, 6, 7]]]
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].tolist() == [1, 2]
    assert batch["label"].dtype == torch.int64
    assert batch["weight"].tolist() == [[1, -1], [2, -2]]
    assert Schema(SCHEMA).batch([])["image"].shape == (0, 2, 3)


label = st.one_of(st.integers(0, 9), st.sampled_from([127, 128, 2**14, -1, 2**63 - 1]))
orders = st.permutations(["image", "label", "weight", "name", "pixels"])


@given(st.lists(st.tuples(label, orders, st.text(max_size=3)), max_size=30))
def test_a_batch_at_once_is_what_each_record_by_itself_says(rows):
    """Names in any order, numbers of any width, other features between: never one value in another's place."""
    schema = Schema({**SCHEMA, "name": ("bytes", []), "pixels": ("int16", [2])})
    for _ in range(2):  # the second time by the layouts of the first
        wrote = []
        for number, order, name in rows:
            features = sample(number, name=name.encode(), pixels=[number % 300, 5])
            wrote.append({key: features[key] for key in order})
        batch = schema.batch([encode(features) for features in wrote])
        for row, features in enumerate(wrote):
            assert batch["label"][row] == features["label"]
            assert batch["image"][row].flatten().tolist() == list(features["image"])
            np.testing.assert_array_equal(batch["weight"][row].numpy(), features["weight"])
            assert batch["name"][row] == features["name"]
            assert batch["pixels"][row].tolist() == features["pixels"]


def test_records_that_differ_in_a_name_alone_are_not_taken_for_each_other():
    schema = Schema({"label": ("int64", [])})
    schema.batch([encode({"label": 3, "other": 4})])
    swapped = encode({"other": 3, "label": 4})
    assert len(swapped) == len(encode({"label": 3, "other": 4}))
    assert schema.batch([swapped])["label"].tolist() == [4]
    with pytest.raises(UnfitRecord, match="no feature 'label'"):
        schema.batch([encode({"lapel": 3, "other": 4})])


def test_numbers_of_other_widths_in_records_of_one_length_are_not_mixed_up():
    schema = Schema({"x": ("int64", [2])})
    rows = [[5, 128], [128, 5], [6, 300], [300, 6]]
    for _ in range(2):
        assert schema.batch([encode({"x": row}) for row in rows])["x"].tolist() == rows


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_bytes_are_raw_little_endian_numbers(dtype):
    numbers = np.array([[1, 2], [3, 100]], np.dtype(dtype).newbyteorder("<"))
    schema = Schema({"x": (dtype, [2])})
    for _ in range(2):
        batch = schema.batch([encode({"x": row.tobytes()}) for row in numbers])
        assert batch["x"].tolist() == numbers.tolist()
        assert str(batch["x"].dtype) == f"torch.{dtype}"


@pytest.mark.parametrize(
    ("given", "wrote", "reason"),
    [
        (("uint8", [4]), {"x": b"abc"}, r"feature 'x' holds 3 bytes, not uint8 \[4\]"),
        (("uint8", [3]), {"x": [b"abc", b"def"]}, "holds 2 byte strings"),
        (("int64", [2]), {"x": [1, 2, 3]}, "holds 3 int64 values"),
        (("int64", []), {"x": 1.5}, r"holds 1 float values, not int64 \[\]"),
        (("float32", []), {"x": 1}, r"holds 1 int64 values, not float32 \[\]"),
        (("bytes", []), {"x": 1}, "not bytes"),
        (("uint8", []), {"x": 256}, "holds 256, which is no uint8"),
        (("int64", []), {"y": 1, "z": 2}, "no feature 'x', but 'y', 'z'"),
    ],
)
def test_a_record_that_does_not_fit_is_named_by_its_row(given, wrote, reason):
    schema = Schema({"x": given})
    for _ in range(2):
        with pytest.raises(UnfitRecord, match=reason) as caught:
            schema.batch([encode(wrote)])
        assert caught.value.row == 0


def test_a_number_that_the_dtype_cannot_hold_is_found_in_a_batch_at_once_too():
    schema = Schema({"x": ("uint8", [])})
    assert schema.batch([encode({"x": 200}), encode({"x": 5})])["x"].tolist() == [200, 5]
    with pytest.raises(UnfitRecord, match="holds 300, which is no uint8") as caught:
        schema.batch([encode({"x": 201}), encode({"x": 300})])  # as wide as 200, so in the place known for that
    assert caught.value.row == 1


@pytest.mark.parametrize("given", [("uint9", []), ("uint8", [-1]), "uint8", ("bytes", [2]), ("uint8", 4), ("bool", [])])
def test_a_schema_that_cannot_be_is_refused(given):
    with pytest.raises(ConfigError, match="feature 'x' cannot be read"):
        Schema({"x": given})
