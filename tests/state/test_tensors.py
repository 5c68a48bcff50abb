"""Tensors seen as views of the bytes that travel."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from evener.devices.process import LARGE
from evener.state.tensors import PIECE, Slot, bind, digest_of, frozen, let_go, overwrite, specs_of, whole_views, zeros
from evener.wire.layout import Layout, Spec


class Zoo(nn.Module):
    """Everything that makes a model hard to bind: tied weights, buffers of two dtypes, frozen and scalar parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
        self.embed = nn.Linear(6, 4, bias=False)
        self.head = nn.Linear(6, 4, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("cache", torch.ones(2), persistent=False)

    def forward(self, x):
        return (self.inner(x) + self.embed(x) + self.head(x)) * self.scale * self.fixed.sum()


def block_of(layout):
    return torch.zeros(layout.nbytes, dtype=torch.uint8).numpy().data


def parts(layout, block, shard=0):
    return [block[at : at + nbytes] for at, nbytes in layout.ranges(shard)]


def values(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(these, those):
    assert these.keys() == those.keys()
    for name in these:
        torch.testing.assert_close(these[name], those[name], rtol=0, atol=0)


# --- which tensors travel


def test_trained_parameters_and_persistent_buffers_travel_each_once():
    names = {spec.name: (spec.dtype, spec.trained) for spec in specs_of(Zoo())}

    assert names == {
        "scale": ("float32", True),
        "inner.0.weight": ("float32", True),
        "inner.0.bias": ("float32", True),
        "inner.1.weight": ("float32", True),
        "inner.1.bias": ("float32", True),
        "embed.weight": ("float32", True),  # and not head.weight, which is the same parameter
        "inner.1.running_mean": ("float32", False),
        "inner.1.running_var": ("float32", False),
        "inner.1.num_batches_tracked": ("int64", False),
    }


def test_a_frozen_parameter_and_a_buffer_that_is_not_kept_stay_where_they_are():
    names = [spec.name for spec in specs_of(Zoo())]

    assert "fixed" not in names
    assert "cache" not in names
    assert list(frozen(Zoo(), Layout(specs_of(Zoo())))) == ["fixed"]


# --- bind


@pytest.mark.parametrize("shards", [1, 3])
def test_binding_keeps_every_value(shards):
    model = Zoo()
    before = values(model)
    layout = Layout(specs_of(model), shards=shards)
    bind(model, whole_views(layout, block_of(layout)))

    assert_same(values(model), before)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_bound_model_lives_in_the_block_and_nowhere_else(shards):
    model = Zoo()
    layout = Layout(specs_of(model), shards=shards)
    block = block_of(layout)
    bind(model, whole_views(layout, block))

    block[:] = bytes(len(block))  # as when new parameters arrive

    travelling = {spec.name for spec in layout.specs}
    for name, tensor in model.state_dict().items():
        assert bool((tensor == 0).all()) == (name in travelling or name == "head.weight"), name


def test_what_training_writes_into_a_bound_model_lies_in_the_block():
    model = Zoo()
    layout = Layout(specs_of(model), shards=2)
    views = whole_views(layout, block_of(layout))
    bind(model, views)

    model(torch.randn(8, 6)).sum().backward()  # BatchNorm writes its buffers
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.sub_(parameter.grad)

    assert int(views["inner.1.num_batches_tracked"]) == 1
    assert bool((views["inner.1.running_mean"] != 0).any())
    for name, parameter in model.named_parameters():
        if name in views:
            torch.testing.assert_close(views[name], parameter.detach(), rtol=0, atol=0)


def test_tied_weights_stay_tied():
    model = Zoo()
    layout = Layout(specs_of(model))
    views = whole_views(layout, block_of(layout))
    bind(model, views)

    assert model.head.weight is model.embed.weight
    views["embed.weight"].fill_(7)
    assert bool((model.head.weight == 7).all())


def test_a_buffer_that_two_modules_share_stays_shared():
    model = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(3)])
    model[1].running_mean = model[0].running_mean
    layout = Layout(specs_of(model))
    views = whole_views(layout, block_of(layout))
    bind(model, views)

    views["0.running_mean"].fill_(7)

    assert bool((model[1].running_mean == 7).all())


# --- slots and views


def test_a_slot_shows_each_piece_in_its_shape_and_a_part_of_one_as_a_run():
    layout = Layout([Spec("a", (2, 8), "float32", True), Spec("b", (4, 16), "float32", True)], shards=2)

    shapes = [
        {piece.key: tuple(view.shape) for piece, view in Slot(layout, shard).named()} for shard in range(layout.shards)
    ]
    assert shapes == [{"a": (2, 8), "b[0:32]": (32,)}, {"b[32:64]": (32,)}]


def test_a_slots_trained_run_and_buffer_run_hold_all_of_their_views():
    layout = Layout(specs_of(Zoo()))
    slot = Slot(layout, 0)
    for index, view in enumerate(slot.views):
        view.fill_(index + 1)

    trained = {float(value) for run in slot.trained for value in run} - {0.0}  # zeros lie between tensors
    buffers = {float(value) for run in slot.buffers for value in run} - {0.0}
    assert trained == {index + 1 for index, piece in enumerate(slot.pieces) if piece.spec.trained}
    assert buffers == {index + 1 for index, piece in enumerate(slot.pieces) if not piece.spec.trained}


@pytest.mark.parametrize("trained", [True, False])
def test_a_slot_may_hold_parameters_only_or_buffers_only(trained):
    slot = Slot(Layout([Spec("t", (5,), "float32", trained)]), 0)

    assert (len(slot.trained), len(slot.buffers)) == ((1, 0) if trained else (0, 1))


def test_a_shard_without_work_has_an_empty_slot():
    slot = Slot(Layout([Spec("t", (5,), "float32", True)], shards=3), 2)

    assert (slot.pieces, slot.views, slot.trained, slot.buffers) == ((), [], [], [])
    assert slot.first_non_finite() == ""


def test_a_fresh_slot_is_zero_and_aligned_to_cache_lines():
    slot = Slot(Layout(specs_of(Zoo())), 0)

    assert all(bool((view == 0).all()) for view in slot.views)
    assert all(run.data_ptr() % 64 == 0 for run in slot.trained)


def test_the_slots_of_all_shards_and_the_whole_views_see_the_same_memory():
    layout = Layout([Spec("a", (3,), "float32", True), Spec("w", (9, 16), "float32", True)], shards=3)
    block = block_of(layout)
    views = whole_views(layout, block)
    for shard in range(3):
        for piece, view in Slot(layout, shard, parts(layout, block, shard)).named():
            view.reshape(-1).copy_(torch.arange(piece.start, piece.stop))

    assert len([piece for piece in layout.pieces if piece.spec.name == "w"]) == 3  # it is split
    torch.testing.assert_close(views["w"], torch.arange(144.0).view(9, 16), rtol=0, atol=0)
    torch.testing.assert_close(views["a"], torch.arange(3.0), rtol=0, atol=0)


def test_scalars_and_tensors_without_elements_have_views_too():
    layout = Layout([Spec("s", (), "float32", True), Spec("none", (0, 3), "float32", True)], shards=2)
    views = whole_views(layout, block_of(layout))

    assert (views["s"].shape, views["none"].shape) == ((), (0, 3))
    assert whole_views(Layout([]), b"") == {}


# --- not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_tensor_that_is_not_finite_is_named(bad):
    slot = Slot(Layout([Spec("a", (20,), "float32", True), Spec("b", (20,), "float32", True)]), 0)
    slot.views[1][13] = bad

    assert slot.first_non_finite() == "b"


def test_a_part_of_a_split_tensor_is_named_with_its_range():
    slot = Slot(Layout([Spec("w", (64,), "float32", True)], shards=2), 1)
    slot.views[0][5] = float("nan")

    assert slot.first_non_finite() == "w[32:64]"


@pytest.mark.parametrize("values", [[3e38, 3e38], [3e38, 3e38, -3e38, -3e38]])
def test_a_sum_that_overflows_over_finite_values_accuses_nobody(values):
    slot = Slot(Layout([Spec("w", (4,), "float32", True)]), 0)
    slot.views[0][: len(values)] = torch.tensor(values)

    assert slot.first_non_finite() == ""


def test_infinities_of_both_signs_do_not_hide_each_other():
    slot = Slot(Layout([Spec("w", (4,), "float32", True)]), 0)
    slot.views[0][:2] = torch.tensor([float("inf"), float("-inf")])

    assert slot.first_non_finite() == "w"


def test_a_buffer_that_is_not_finite_is_named_unless_it_may_be():
    slot = Slot(Layout([Spec("lowest", (4,), "float32", False), Spec("w", (4,), "float32", True)]), 0)
    next(view for piece, view in slot.named() if piece.key == "lowest").fill_(float("inf"))

    assert slot.first_non_finite() == "lowest"
    assert slot.infinite_buffers() == {"lowest"}
    assert slot.first_non_finite({"lowest"}) == ""


# --- frozen parameters


def _frozen(*tensors):
    return {str(index): tensor for index, tensor in enumerate(tensors)}


def test_the_digest_of_parameters_knows_every_bit():
    one = torch.tensor([1.0, 2.0])
    other = torch.nextafter(one, torch.tensor(9.0))

    assert digest_of(_frozen(one)) == digest_of(_frozen(one.clone()))
    assert digest_of(_frozen(one)) != digest_of(_frozen(other))
    assert digest_of(_frozen(one)) != digest_of({"w": one})


def test_the_digest_of_parameters_knows_shape_and_dtype():
    digests = {
        digest_of(_frozen(tensor))
        for tensor in (torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.zeros(3, dtype=torch.float64))
    }

    assert len(digests) == 4


def test_the_digest_takes_scalars_empty_bfloat16_and_transposed_tensors():
    odd = (torch.tensor(1.0), torch.zeros(0, 3), torch.ones(2, dtype=torch.bfloat16), torch.arange(6.0).view(2, 3).T)

    assert len(digest_of(_frozen(*odd))) == 16


def test_a_change_of_one_tensor_is_no_change_of_another_in_the_same_memory():
    """Else BatchNorm's count of its batches would be a change of all that autograd has saved."""
    layout = Layout(specs_of(Zoo()))
    views = list(whole_views(layout, bytearray(layout.nbytes)).values())
    before = views[1]._version
    views[0].add_(1)

    assert views[1]._version == before


# --- memory


def resident() -> int:
    """Bytes of this process that are in memory and in no file."""
    words = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", words)[1]) * 1024


def test_many_zeros_take_memory_when_they_are_written():
    before = resident()
    made = zeros(8 * LARGE)
    assert resident() - before < LARGE

    assert not made[:: LARGE // 2].any()
    made.fill_(1)
    assert resident() - before > 7 * LARGE
    assert int(made[-1]) == 1


@pytest.mark.parametrize("nbytes", [0, 1, 4096, LARGE - 1, LARGE])
def test_zeros_are_zero_however_many_they_are(nbytes):
    made = zeros(nbytes)
    assert (made.dtype, made.numel(), int(made.sum())) == (torch.uint8, nbytes, 0)
    if nbytes:
        assert made.data_ptr() % 64 == 0


def test_also_on_a_system_whose_memory_maps_have_no_flags(monkeypatch):
    """Windows."""
    monkeypatch.delattr("mmap.MAP_ANONYMOUS")
    monkeypatch.delattr("mmap.MAP_PRIVATE")
    assert zeros(2 * LARGE).eq(0).all()


@pytest.mark.parametrize("numel", [3, 2 * PIECE + 5])
def test_two_slots_change_places_and_back(numel):
    layout = Layout([Spec("a", (numel,), "float32", trained=True), Spec("b", (5,), "int64", trained=False)])
    one, two = Slot(layout, 0), Slot(layout, 0)
    for number, slot in enumerate((one, two)):
        for view in slot.views:
            view.copy_(torch.arange(view.numel()) + number)
    first, second = ([view.clone() for view in slot.views] for slot in (one, two))

    one.swap(two)
    assert all(map(torch.equal, one.views, second))
    assert all(map(torch.equal, two.views, first))
    two.swap(one)
    assert all(map(torch.equal, one.views, first))


def test_a_model_that_is_let_go_holds_no_memory():
    model = Zoo()
    let_go(model)

    held = [*model.parameters(), *(value for name, value in model.named_buffers() if name != "cache")]
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in held)


def transposed(numbers):
    return numbers.view(4, 6).t()


@pytest.mark.parametrize(
    "source",
    [
        torch.arange(24.0),
        transposed(torch.arange(24.0)),
        torch.arange(24.0, dtype=torch.float64),
        torch.arange(48.0)[::2],
        torch.complex(torch.arange(24.0), torch.ones(24)).conj(),
        torch.arange(1.0).expand(24),
        torch.arange(24),
    ],
    ids=["alike", "transposed", "wider", "strided", "conjugate", "expanded", "whole numbers"],
)
def test_memory_that_another_process_has_read_is_written_over_with_the_same_numbers(source):
    dtype = source.dtype if source.is_complex() else torch.float32
    target, expected = torch.zeros(source.shape, dtype=dtype), torch.zeros(source.shape, dtype=dtype)
    overwrite(target, source)
    assert torch.equal(target, expected.copy_(source))


def test_a_block_that_begins_in_the_middle_of_another_one_stays_in_its_bounds():
    block = torch.full((10,), -1.0)
    overwrite(block[2:5], torch.arange(3.0))
    assert block.tolist() == [-1, -1, 0, 1, 2, -1, -1, -1, -1, -1]
