"""Pickles read as data: plain things come out, nothing is ever run."""

import contextlib
import os
import pickle
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from evener.data import pickled

#: As Python 2 wrote the official files: byte strings, numpy's functions by their old names.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(K\x06K\te"
    b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\tU\x01bq\n\x87Rq\x0b"
    b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x0cU\x02u1q\rK\x00K\x01\x87Rq\x0e(K\x03U\x01|q\x0fNNNJ\xff\xff\xff\xff"
    b"J\xff\xff\xff\xffK\x00tb\x89U\x06\x00\x01\xfe\xff\x7f\x80tbU\tfilenamesq\x10]q\x11(U\x05a.pngU\x05b.pngeu."
)


def test_what_python_2_wrote():
    made = pickled.read(PYTHON_2)

    assert made["data"].dtype == np.uint8
    assert made["data"].tolist() == [[0, 1, 254], [255, 127, 128]]
    del made["data"]
    assert made == {"batch_label": "training batch 1 of 5", "labels": [6, 9], "filenames": ["a.png", "b.png"]}
    assert pickle.loads(PYTHON_2, encoding="latin1").keys() == pickled.read(PYTHON_2).keys()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=6,
)


@settings(max_examples=60)
@given(PLAIN, st.sampled_from([2, 3, 4]))
def test_plain_data_is_what_pythons_own_reader_makes_of_it(value, protocol):
    content = pickle.dumps(value, protocol)
    assert pickled.read(content) == pickle.loads(content)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("array", [np.arange(12, dtype=np.uint8).reshape(3, 4), np.zeros((0, 5), dtype=np.uint8)])
def test_arrays_of_bytes_also_twice_in_one_pickle(protocol, array):
    first, second = pickled.read(pickle.dumps({"a": array, "b": [array]}, protocol)).values()

    assert np.array_equal(first, array)
    assert second[0] is first


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        Evil(os.system, "touch owned"), Evil(eval, "1"), Evil(subprocess.run, ["true"]), os.getcwd, Evil, {1, 2},
        np.arange(3), np.array([None]), np.zeros((2, 3), dtype=np.uint8, order="F"),
    ],
    ids=["system", "eval", "run", "getcwd", "class", "set", "int64 array", "object array", "Fortran order"],
)  # fmt: skip
def test_anything_else_is_refused_and_not_run(value, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"data": value}, protocol)
    with pytest.raises(pickled.PickleRefused):
        pickled.read(content)
    assert os.listdir(tmp_path) == []


def test_the_refusal_names_the_thing_and_the_place():
    content = pickle.dumps(Evil(os.system, "true"), 2)
    with pytest.raises(pickled.PickleRefused, match=r"posix\.system, which is not plain data, at byte 2"):
        pickled.read(content)


def test_a_newer_protocol_is_named():
    with pytest.raises(pickled.PickleRefused, match="a pickle of protocol 5, at byte 0"):
        pickled.read(pickle.dumps([1], 5))


def test_what_is_cut_short_says_so_wherever_it_is_cut():
    for end in range(len(PYTHON_2)):
        with pytest.raises(pickled.PickleRefused):
            pickled.read(PYTHON_2[:end])
    with pytest.raises(pickled.PickleRefused, match=f"cut short, at byte {len(PYTHON_2) - 1}"):
        pickled.read(PYTHON_2[:-1])


@given(st.lists(st.tuples(st.integers(0, len(PYTHON_2) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_refused_or_gives_other_plain_data(changes):
    content = bytearray(PYTHON_2)
    for place, value in changes:
        content[place] = value
    with contextlib.suppress(pickled.PickleRefused):
        pickled.read(bytes(content))


@given(st.binary(max_size=60))
def test_noise_is_refused_or_plain(content):
    with contextlib.suppress(pickled.PickleRefused):
        pickled.read(b"\x80\x02" + content)


# --- a pickle that says much in few bytes


def program(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60  # a tuple of the one before, twice: 2^60 leaves


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (program(b"}", DOUBLED, b"K\x01s"), "leaves, the same ones again and again"),
        (program(b"cnumpy\ndtype\n", DOUBLED, b"\x85R"), "leaves, the same ones again and again"),
        (program(b"}(", b"K\x01\x85", b"K\x01u"), r"an entry whose key is \(1\)"),
        (program(b"}", b")" + b"\x85" * 3_000_000, b"K\x01s"), "more than 100 containers in each other"),
        (program(b"]" * 3_000_000, b"a" * 2_999_999), "more than 100000 lists, dicts and tuples"),
        (program(b"]" * 1000, b"a" * 999), "more than 100 containers in each other"),
        (program(b"]q\x00h\x00a"), "a container that holds itself"),
        (program(b"]q\x00]q\x01h\x00ah\x01h\x01a"), "a container that holds itself"),
        (program(b"]q\x00]h\x00ah\x00K\x01a"), "a container that grows while another one holds it"),
        (program(b"N" * 4_000_001), "more than 4000000 opcodes"),
        (program(b"K\x01\x85K\x01\x85\x93"), "it names something by what is no text"),
        (program(b"X\x64\0\0\0" + b"x" * 100 + b"q\x00c_codecs\nencode\nq\x01U\x06latin1q\x02"
                 + b"h\x01h\x00h\x02\x86R" * 9), "more bytes are made of it than it has"),
    ],
    ids=["key", "message", "tuple as key", "deep tuples", "many lists", "deep lists", "itself", "itself, twice",
         "grows", "opcodes", "name", "copies"],
)  # fmt: skip
def test_what_costs_more_than_plain_data_is_refused(content, reason):
    with pytest.raises(pickled.PickleRefused, match=reason):
        pickled.read(content)


@pytest.mark.parametrize(
    "shape", [b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85", b"K\x00\x8a\x09" + b"\xff" * 8 + b"\x00\x86"]
)
def test_an_array_of_an_absurd_shape_is_refused(shape):
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    with pytest.raises(pickled.PickleRefused, match="an array of shape"):
        pickled.read(program(made, shape, b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x00tb"))
