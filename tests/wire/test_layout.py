"""The layout: every element of every tensor lies on exactly one shard, at one place, and all tasks agree where."""

from itertools import pairwise

import pytest
from hypothesis import example, given, strategies as st

from evener.errors import ConfigError
from evener.wire.layout import ALIGNMENT, ITEMSIZE, PLACEMENTS, Layout, Piece, Spec

MLP = (
    Spec("hidden.weight", (500, 784), "float32", True),
    Spec("hidden.bias", (500,), "float32", True),
    Spec("output.weight", (10, 500), "float32", True),
    Spec("output.bias", (10,), "float32", True),
)

shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)  # scalars and zero-size tensors too


@st.composite
def models(draw):
    """Up to eight tensors, as `specs_of` gives them: trained ones are floats."""
    rows = draw(st.lists(st.tuples(shapes, st.sampled_from(sorted(ITEMSIZE)), st.booleans()), max_size=8))
    return [
        Spec(f"t{index}", shape, dtype, trained and "float" in dtype)
        for index, (shape, dtype, trained) in enumerate(rows)
    ]


def floats(*numels, trained=True):
    return [Spec(f"w{index}", (numel,), "float32", trained) for index, numel in enumerate(numels)]


def shard_of(layout):
    return {piece.spec.name: piece.shard for piece in layout.pieces}


def parts_of(layout, spec) -> list[Piece]:
    return [piece for piece in layout.pieces if piece.spec == spec]


# --- what holds for every model, number of shards and placement


@given(models(), st.integers(1, 9), st.sampled_from(sorted(PLACEMENTS)))
@example([], 3, "even")
@example([Spec("one", (), "float32", True)], 9, "even")
@example([Spec("none", (0, 4), "float32", True)], 2, "greedy")
def test_every_element_of_every_tensor_lies_on_exactly_one_shard_once(specs, shards, placement):
    layout = Layout(specs, shards=shards, placement=placement)

    for spec in specs:
        parts = parts_of(layout, spec)
        covered = [element for part in parts for element in range(part.start, part.stop)]
        assert covered == list(range(spec.numel))  # once each, and the parts come in order
        assert parts, "a tensor without elements has its place too"
    assert all(0 <= piece.shard < shards for piece in layout.pieces)


@given(models(), st.integers(1, 9), st.sampled_from(sorted(PLACEMENTS)))
def test_the_parts_of_a_split_tensor_follow_each_other_without_a_gap(specs, shards, placement):
    layout = Layout(specs, shards=shards, placement=placement)

    for spec in specs:
        for before, after in pairwise(parts_of(layout, spec)):
            assert after.offset == before.offset + before.stop - before.start
            assert after.shard > before.shard


@given(models(), st.integers(1, 9), st.sampled_from(sorted(PLACEMENTS)))
def test_places_are_aligned_and_disjoint_and_inside_their_shards_range(specs, shards, placement):
    layout = Layout(specs, shards=shards, placement=placement)
    bytes_of = []

    for segment in layout.segments:
        assert segment.offset_nbytes % 4096 == 0
        assert [segment.bounds[0], segment.bounds[-1], len(segment.bounds)] == [0, segment.numel, shards + 1]
        assert list(segment.bounds) == sorted(segment.bounds)
        for piece in layout.pieces:
            if piece.spec.dtype == segment.dtype:
                assert piece.offset % ALIGNMENT == 0
                end = piece.offset + piece.stop - piece.start
                assert segment.bounds[piece.shard] <= piece.offset <= end <= segment.bounds[piece.shard + 1]
                if piece.start < piece.stop:
                    item = ITEMSIZE[segment.dtype]
                    bytes_of.append((segment.offset_nbytes + piece.offset * item, segment.offset_nbytes + end * item))
    assert all(before[1] <= after[0] for before, after in pairwise(sorted(bytes_of)))
    assert all(end <= layout.nbytes for _, end in bytes_of)


@given(models(), st.integers(1, 9), st.sampled_from(sorted(PLACEMENTS)))
def test_the_ranges_of_all_shards_cut_the_block_into_slices_of_each_dtype(specs, shards, placement):
    layout = Layout(specs, shards=shards, placement=placement)

    ranges = [layout.ranges(shard) for shard in range(shards)]
    assert {len(of_shard) for of_shard in ranges} == {len(layout.segments)}
    for index, segment in enumerate(layout.segments):
        at = segment.offset_nbytes
        for of_shard in ranges:
            assert of_shard[index][0] == at
            assert of_shard[index][0] % (ALIGNMENT * ITEMSIZE[segment.dtype]) == 0
            at += of_shard[index][1]
        assert at == segment.offset_nbytes + segment.numel * ITEMSIZE[segment.dtype]


@given(models(), st.integers(1, 9), st.sampled_from(sorted(PLACEMENTS)))
def test_a_shards_buffers_lie_before_its_parameters_so_that_these_are_one_run(specs, shards, placement):
    layout = Layout(specs, shards=shards, placement=placement)

    for shard in range(shards):
        for segment in layout.segments:
            trained = [piece.spec.trained for piece in layout.on(shard) if piece.spec.dtype == segment.dtype]
            assert trained == sorted(trained)


@given(models(), st.integers(1, 9))
def test_even_splits_at_most_one_tensor_fewer_than_there_are_shards(specs, shards):
    layout = Layout(specs, shards=shards, placement="even")

    for dtype in {spec.dtype for spec in specs}:
        split = {piece.spec.name for piece in layout.pieces if piece.spec.dtype == dtype and not piece.whole}
        assert len(split) <= shards - 1


@given(models(), st.integers(1, 9), st.sampled_from(["round_robin", "greedy"]))
def test_the_other_placements_keep_tensors_whole(specs, shards, placement):
    assert all(piece.whole for piece in Layout(specs, shards=shards, placement=placement).pieces)


# --- even


@pytest.mark.parametrize("shards", [2, 3, 4, 7])
def test_even_gives_the_shards_of_the_mnist_network_about_equal_bytes(shards):
    layout = Layout(MLP, shards=shards)

    sizes = [sum(nbytes for _, nbytes in layout.ranges(shard)) for shard in range(shards)]
    assert max(sizes) / (sum(sizes) / shards) <= 1.1


def test_more_shards_than_tensors_share_the_large_ones():
    layout = Layout([Spec("w", (8, 16), "float32", True)], shards=4)

    assert [piece.key for piece in layout.pieces] == ["w[0:32]", "w[32:64]", "w[64:96]", "w[96:128]"]
    assert [piece.shard for piece in layout.pieces] == [0, 1, 2, 3]


def test_more_shards_than_elements_leave_some_without_work():
    layout = Layout([Spec("b", (10,), "float32", True)], shards=3)

    assert [(piece.key, piece.shard) for piece in layout.pieces] == [("b", 0)]
    assert layout.on(2) == ()
    assert [nbytes for shard in range(3) for _, nbytes in layout.ranges(shard)] == [64, 0, 0]


def test_a_piece_has_the_tensors_name_or_its_range():
    whole, first, second = Layout(floats(16, 64), shards=2).pieces[:3]

    assert (whole.key, first.key, second.key) == ("w0", "w1[0:32]", "w1[32:64]")


def test_a_model_without_tensors_needs_no_memory():
    layout = Layout([], shards=2)

    assert (layout.nbytes, layout.ranges(1), layout.pieces) == (0, (), ())


# --- round robin and greedy, as TensorFlow has them


def test_round_robin_gives_tensor_k_to_shard_k_mod_p():
    layout = Layout(MLP, shards=3, placement="round_robin")

    assert shard_of(layout) == {"hidden.weight": 0, "hidden.bias": 1, "output.weight": 2, "output.bias": 0}


def test_round_robin_counts_all_tensors_with_one_counter_whatever_their_dtype_or_use():
    specs = [
        Spec("a", (4,), "float32", True),
        Spec("b", (4,), "float64", True),
        Spec("c", (4,), "float32", True),
        Spec("mean", (4,), "float32", False),
        Spec("count", (), "int64", False),
    ]
    layout = Layout(specs, shards=2, placement="round_robin")

    assert shard_of(layout) == {"a": 0, "b": 1, "c": 0, "mean": 1, "count": 0}


def test_greedy_gives_each_tensor_to_the_least_loaded_shard_and_the_lower_one_on_a_tie():
    layout = Layout(floats(100, 40, 30, 30, 1), shards=3, placement="greedy")

    # loads: 100 | 40 | 30, then 30 to the last, then 1 to the second
    assert shard_of(layout) == {"w0": 0, "w1": 1, "w2": 2, "w3": 2, "w4": 1}


def test_greedy_weighs_bytes_over_all_dtypes():
    specs = [
        Spec("big", (100,), "float32", True),
        Spec("wide", (20,), "float64", True),
        Spec("next", (10,), "float64", True),
        Spec("more", (30,), "float32", True),
    ]
    layout = Layout(specs, shards=2, placement="greedy")

    assert shard_of(layout) == {"big": 0, "wide": 1, "next": 1, "more": 1}  # 400 | 160, 240, 360


def test_greedy_counts_a_scalar_as_one_element_and_nothing_as_nothing():
    specs = [
        Spec("none", (0,), "float32", True),
        Spec("scalar", (), "float32", True),
        Spec("after", (1,), "float32", True),
        Spec("last", (1,), "float32", True),
    ]
    layout = Layout(specs, shards=2, placement="greedy")

    assert shard_of(layout) == {"none": 0, "scalar": 0, "after": 1, "last": 0}


# --- agreement


@given(models(), models(), st.integers(1, 3), st.integers(1, 3))
def test_fingerprints_are_equal_exactly_if_the_layouts_are(mine, theirs, shards, others):
    one, two = Layout(mine, shards=shards), Layout(theirs, shards=others)

    assert (one.fingerprint == two.fingerprint) == (mine == theirs and shards == others)
    assert Layout(list(mine), shards=shards).fingerprint == one.fingerprint


def test_the_fingerprint_knows_the_placement():
    prints = {Layout(MLP, shards=2, placement=placement).fingerprint for placement in PLACEMENTS}

    assert len(prints) == len(PLACEMENTS)


@pytest.mark.parametrize(
    ("theirs", "sentence"),
    [
        (MLP[:3], "ps:0 lacks 'output.bias' that worker:1 has"),
        (
            (Spec("hidden.weight", (512, 784), "float32", True), *MLP[1:]),
            "'hidden.weight' is [500, 784] on worker:1, [512, 784] on ps:0",
        ),
        (
            (*MLP[:3], Spec("output.bias", (10,), "float64", True)),
            "'output.bias' is float32 on worker:1, float64 on ps:0",
        ),
        ((*MLP[:3], Spec("output.bias", (10,), "float32", False)), "'output.bias' is trained on worker:1 only"),
        ((*MLP, Spec("scale", (), "float32", True)), "ps:0 has 'scale' that worker:1 lacks"),
        (MLP, ""),
    ],
    ids=["lacking", "shape", "dtype", "trained", "extra", "same"],
)
def test_a_difference_is_one_sentence_about_the_first_tensor(theirs, sentence):
    assert Layout(MLP).difference(theirs, here="worker:1", there="ps:0") == sentence


def test_a_tensor_trained_over_there_only_is_said_so():
    here = Layout([Spec("w", (1,), "float32", False)])

    assert here.difference([Spec("w", (1,), "float32", True)], here="a", there="b") == "'w' is trained on b only"


# --- refusals


def test_a_dtype_that_cannot_travel_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"tensor 'fft' has dtype complex64") as refused:
        Layout([Spec("fft", (2,), "complex64", True)])
    assert "float32" in refused.value.why
    assert "persistent=False" in refused.value.fix


def test_an_unknown_placement_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown placement 'evenly'") as refused:
        Layout(MLP, placement="evenly")
    assert refused.value.fix == "use one of: even, round_robin, greedy."


def test_stages_of_a_pipeline_are_shards_of_whole_tensors_where_the_cut_puts_them():
    stages = {"hidden.weight": 0, "hidden.bias": 0, "output.weight": 1, "output.bias": 1}

    layout = Layout(MLP, shards=2, stages=stages)

    assert shard_of(layout) == stages
    assert all(piece.whole for piece in layout.pieces)
    assert layout.fingerprint != Layout(MLP, shards=2, stages={**stages, "hidden.bias": 1}).fingerprint
