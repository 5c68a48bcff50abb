"""State: one shard's update is that of plain torch.optim, and what was copied continues anywhere, bit for bit."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR, SequentialLR
from training import (
    Net,
    assert_equal,
    fresh,
    gradient_at,
    large_ones,
    recipe_of,
    restored,
    save,
    shards_of,
    slot_of,
    train,
    whole_of,
)

from evener.errors import CheckpointError, ConfigError
from evener.state.checkpoint import Store
from evener.state.state import State
from evener.state.tensors import Slot, let_go, specs_of
from evener.wire.layout import Layout

OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "adamw_groups": lambda model: torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0, "lr": 0.002},
        ],
        lr=0.01,
    ),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.1, eps=0),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9, centered=True),
}

SCHEDULES = {
    "decay": lambda optimizer, steps: LambdaLR(optimizer, lambda step: 0.9 ** (step / steps)),
    "steps": lambda optimizer, _: MultiStepLR(optimizer, milestones=[2, 5], gamma=0.1),
    "cosine": lambda optimizer, _: CosineAnnealingLR(optimizer, T_max=10),
    "one_cycle": lambda optimizer, _: OneCycleLR(optimizer, max_lr=0.1, total_steps=20),
    "sequence": lambda optimizer, _: SequentialLR(
        optimizer,
        [LambdaLR(optimizer, lambda step: (step + 1) / 4), MultiStepLR(optimizer, milestones=[2], gamma=0.1)],
        milestones=[3],
    ),
}

#: More shards than the model's seven trained tensors, too.
SHARDS = [1, 3, 11]


class Wide(nn.Module):
    """One tensor that eleven shards share."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 20))


def trained_plainly(recipe, steps):
    """The same gradients through torch.optim itself."""
    model = fresh(recipe)
    optimizer = recipe.optimizer(model)
    scheduler = recipe.lr_scheduler(optimizer, 3) if recipe.lr_scheduler else None
    for step in range(steps):
        whole = gradient_at(step, model)
        for name, parameter in model.named_parameters():
            parameter.grad = whole.get(name)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def parameters_of(states):
    whole = whole_of(states)
    return {spec.name: whole[spec.name] for spec in states[0].parameters.layout.specs if spec.trained}


# --- updates


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_is_that_of_plain_torch_optim_on_any_number_of_shards(optimizer, shards):
    recipe = recipe_of(OPTIMIZERS[optimizer])
    states = shards_of(recipe, shards)
    train(states, 6)

    assert_equal(parameters_of(states), trained_plainly(recipe, 6), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("placement", ["even", "round_robin", "greedy"])
def test_every_placement_trains_the_same(placement):
    recipe = recipe_of(OPTIMIZERS["adam"])
    states = shards_of(recipe, 4, placement=placement)
    train(states, 4)

    assert_equal(parameters_of(states), trained_plainly(recipe, 4), rtol=1e-6, atol=1e-7)


def test_a_tensor_split_over_eleven_shards_trains_as_a_whole_one():
    recipe = recipe_of(OPTIMIZERS["adam"], Wide)
    states = shards_of(recipe, 11)
    train(states, 5)

    assert len([state for state in states if state.parameters.pieces]) > 8
    assert_equal(parameters_of(states), trained_plainly(recipe, 5), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedules_clock_is_the_global_step(schedule):
    recipe = recipe_of(OPTIMIZERS["momentum"], lr_scheduler=SCHEDULES[schedule])
    states = shards_of(recipe, 2)
    rates = [states[0].learning_rate]
    for _ in range(6):
        train(states, 1)
        rates.append(states[0].learning_rate)

    assert_equal(parameters_of(states), trained_plainly(recipe, 6), rtol=1e-6, atol=1e-7)
    assert len(set(rates)) > 1
    assert states[0].learning_rate == states[1].learning_rate


def test_the_learning_rate_is_that_of_the_next_update():
    (state,) = shards_of(
        recipe_of(lr_scheduler=lambda optimizer, epoch: LambdaLR(optimizer, lambda k: 0.5 ** (k / epoch)))
    )

    assert state.learning_rate == pytest.approx(0.1)
    train([state], 3)  # an epoch, see `shards_of`
    assert state.learning_rate == pytest.approx(0.05)


def test_buffers_follow_the_last_gradient():
    states = shards_of(recipe_of(), 2)
    train(states, 3)

    given, whole = gradient_at(2, Net()), whole_of(states)
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        torch.testing.assert_close(whole[name], given[name], rtol=0, atol=0)
    assert int(whole["norm.num_batches_tracked"]) == 3


def test_frozen_parameters_stay_and_are_kept_once():
    states = shards_of(recipe_of(), 3)
    before = states[0].frozen["fixed"].clone()
    train(states, 2)

    kept = [state.contents().parameters.get("fixed") for state in states]
    torch.testing.assert_close(kept[0], before, rtol=0, atol=0)
    assert kept[1:] == [None, None]


def test_the_model_that_a_state_is_made_from_is_read_and_not_kept():
    recipe = recipe_of()
    model = fresh(recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = State(model, recipe, Layout(specs_of(model)))
    train([state], 2)

    assert_equal({name: p.detach() for name, p in model.named_parameters()}, before)


# --- the mean of some gradients


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_mean_is_the_sum_in_the_order_given_divided_by_the_count(count):
    (state,) = shards_of(recipe_of())
    wholes = [gradient_at(step, Net()) for step in range(count)]
    mean = state.mean([slot_of(state, whole) for whole in wholes])

    for piece, view in mean.named():
        if piece.spec.trained:
            total = wholes[0][piece.spec.name].clone()
            for whole in wholes[1:]:
                total += whole[piece.spec.name]
            torch.testing.assert_close(view, total / count, rtol=0, atol=0)
        else:
            torch.testing.assert_close(view, wholes[-1][piece.spec.name], rtol=0, atol=0)  # of the last one


def test_the_gradients_that_were_averaged_are_not_changed():
    (state,) = shards_of(recipe_of())
    slots = [slot_of(state, gradient_at(step, Net())) for step in range(3)]
    before = [bytes(part) for slot in slots for part in slot.parts]
    state.apply(state.mean(slots))

    assert [bytes(part) for slot in slots for part in slot.parts] == before


def test_the_order_of_a_sum_decides_its_last_bits():
    """So the caller must give the order; this shows that it is kept."""
    (state,) = shards_of(recipe_of(model=Wide))
    slots = [slot_of(state, {"weight": torch.full((16, 20), value)}) for value in (1e8, 1.0, -1e8)]
    one_way = state.mean(slots).views[0].clone()
    other_way = state.mean([slots[0], slots[2], slots[1]]).views[0].clone()

    assert float(one_way[0, 0]) == 0.0  # the 1 was lost in 1e8
    assert float(other_way[0, 0]) == pytest.approx(1 / 3)


# --- moving averages


@pytest.mark.parametrize("shards", SHARDS)
def test_averages_follow_tensorflows_rule(shards):
    decay = 0.5
    states = shards_of(recipe_of(ema_decay=decay), shards)
    shadow = whole_of(states)  # a shadow starts at the value
    for step in range(1, 13):
        train(states, 1)
        value = whole_of(states)
        d = min(decay, (1 + step) / (10 + step))  # 2/11, 3/12, ... and 0.5 from step 8 on
        for name in shadow:
            trained = name.split(".")[-1] not in ("running_mean", "running_var", "num_batches_tracked")
            shadow[name] = shadow[name] - (1 - d) * (shadow[name] - value[name]) if trained else value[name]
    assert (1 + 12) / (10 + 12) > decay > (1 + 1) / (10 + 1)

    assert_equal(whole_of(states, "averages"), shadow, rtol=1e-5, atol=1e-6)


def test_without_a_decay_nothing_is_averaged():
    (state,) = shards_of(recipe_of())

    assert state.averages is None
    assert state.contents().averages == {}


# --- continuing


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (2, 11), (11, 2)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_copied_state_continues_bit_for_bit_on_another_number_of_shards(optimizer, before, after, tmp_path):
    recipe = recipe_of(OPTIMIZERS[optimizer], ema_decay=0.9, lr_scheduler=SCHEDULES["decay"])
    whole = shards_of(recipe, before)
    train(whole, 4)
    store = Store(tmp_path)
    save(store, whole)
    _, contents = store.newest()
    store.close()

    resumed = restored(recipe, contents, after)
    assert resumed[0].step == 4
    assert_equal(whole_of(resumed), whole_of(whole))
    assert_equal(whole_of(resumed, "averages"), whole_of(whole, "averages"))

    train(whole, 4)
    train(resumed, 4)
    assert_equal(whole_of(resumed), whole_of(whole))
    assert_equal(whole_of(resumed, "averages"), whole_of(whole, "averages"))
    assert resumed[0].learning_rate == whole[0].learning_rate


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stopped_at", [1, 3, 4])
def test_every_schedule_continues_where_it_was(schedule, stopped_at, tmp_path):
    recipe = recipe_of(OPTIMIZERS["momentum"], lr_scheduler=SCHEDULES[schedule])
    whole = shards_of(recipe)
    train(whole, stopped_at)
    store = Store(tmp_path)
    save(store, whole)
    resumed = restored(recipe, store.newest()[1], 1)
    store.close()

    for _ in range(5):
        assert resumed[0].learning_rate == whole[0].learning_rate
        train(whole, 1)
        train(resumed, 1)
    assert_equal(whole_of(resumed), whole_of(whole))


def test_a_copy_does_not_change_when_training_goes_on():
    states = shards_of(recipe_of(OPTIMIZERS["adam"], ema_decay=0.9))
    train(states, 2)
    contents = states[0].contents()
    kept = [contents.parameters, contents.averages, contents.optimizer]
    before = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in kept]
    train(states, 2)

    for tensors, then in zip(kept, before, strict=True):
        assert_equal(tensors, then)


def test_averages_asked_for_later_start_at_the_parameters():
    plain = shards_of(recipe_of())
    train(plain, 3)

    resumed = restored(recipe_of(ema_decay=0.9), plain[0].contents(), 1)
    assert_equal(whole_of(resumed, "averages"), whole_of(plain))


# --- refusals


class PerTensor(torch.optim.SGD):
    """Stands for LARS, LAMB and the like: one number of the whole tensor decides over each element."""


def test_an_optimizer_that_looks_at_whole_tensors_cannot_have_split_ones():
    recipe = recipe_of(lambda model: torch.optim.Adafactor(model.parameters()))

    with pytest.raises(ConfigError, match=r"Adafactor cannot update '.*', which is split over several ps") as refused:
        shards_of(recipe, 3)
    assert "element by element" in refused.value.why
    assert "--placement greedy" in refused.value.fix


def test_it_may_have_whole_ones():
    recipe = recipe_of(lambda model: torch.optim.Adafactor(model.parameters()))
    states = shards_of(recipe, 3, placement="greedy")
    train(states, 3)

    assert_equal(parameters_of(states), trained_plainly(recipe, 3), rtol=1e-6, atol=1e-7)


def test_an_unknown_optimizer_says_itself_that_it_works_element_by_element(monkeypatch):
    recipe = recipe_of(lambda model: PerTensor(model.parameters(), lr=0.1))

    with pytest.raises(ConfigError, match="PerTensor cannot update") as refused:
        shards_of(recipe, 3)
    assert "elementwise = True" in refused.value.fix
    monkeypatch.setattr(PerTensor, "elementwise", True, raising=False)
    shards_of(recipe, 3)


def test_optimizer_state_of_whole_tensors_is_not_cut_into_parts():
    recipe = recipe_of(lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), Wide)
    states = shards_of(recipe)
    train(states, 1)
    contents = states[0].contents()
    contents.optimizer["weight/momentum_buffer"] = torch.zeros(16)  # a row statistic

    with pytest.raises(CheckpointError, match=r"optimizer state of 'weight' has 16 elements, the tensor has 320") as no:
        restored(recipe, contents, 2)
    assert "--placement greedy" in no.value.fix


def _without(name):
    return lambda parameters: parameters.pop(name)


def _with(name, tensor):
    return lambda parameters: parameters.update({name: tensor})


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without("first.bias"), "the checkpoint lacks 'first.bias' that this run has"),
        (_with("ninth.weight", torch.zeros(2)), "the checkpoint has 'ninth.weight' that this run lacks"),
        (_with("first.bias", torch.zeros(12)), r"'first.bias' is \[61\] on this run, \[12\] on the checkpoint"),
        (_with("first.bias", torch.zeros(61).double()), "'first.bias' is float32 on this run, float64 on the checkp"),
        (_with("fixed", torch.zeros(4)), "frozen 'fixed' has other values than the recipe gives now"),
    ],
    ids=["lacking", "extra", "shape", "dtype", "frozen"],
)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_changed(change, sentence, shards):
    states = shards_of(recipe_of())
    train(states, 2)
    contents = states[0].contents()
    change(contents.parameters)
    others = shards_of(recipe_of(), shards)
    before = whole_of(others)

    with pytest.raises(CheckpointError, match=f"step 2 cannot be continued here: .*{sentence}") as refused:
        others[0].begin(3, contents)
    assert "--logdir" in refused.value.fix
    assert others[0].step == 0
    assert_equal(whole_of(others), before)


def test_a_checkpoint_of_another_optimizer_is_refused():
    states = shards_of(recipe_of(OPTIMIZERS["momentum"]))
    train(states, 2)

    with pytest.raises(CheckpointError, match="it was trained with SGD, this run trains with Adam"):
        restored(recipe_of(OPTIMIZERS["adam"]), states[0].contents(), 1)


def test_a_shards_memory_is_the_callers_where_it_gives_some():
    recipe = recipe_of()
    model = fresh(recipe)
    layout = Layout(specs_of(model))
    slot = Slot(layout, 0)
    state = State(model, recipe, layout, slot=slot)
    train([state], 1)

    assert state.parameters is slot


# --- how often the parameters are in memory


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1 << 16))


LARGE = 4 << 16  # bytes of it


def large_state(**parts):
    """A ps task's, once the model that it began with is let go, and how many large blocks there were before."""
    before = large_ones(LARGE)
    recipe = recipe_of(model=Large, **parts)
    model = Large()
    state = State(model, recipe, Layout(specs_of(model)))
    let_go(model)
    state.begin(10)
    return state, before


def slot_like(state, value=1.0):
    slot = Slot(state.parameters.layout, 0)
    slot.views[0].fill_(value)
    return slot


@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [(OPTIMIZERS["sgd"], 0), (OPTIMIZERS["momentum"], 1), (OPTIMIZERS["adam"], 2)],
    ids=["sgd", "momentum", "adam"],
)
def test_a_state_is_the_parameters_and_what_the_optimizer_keeps(optimizer, kept):
    state, before = large_state(optimizer=optimizer)
    assert large_ones(LARGE) - before == 1, "before its first update"

    state.apply(slot_like(state))
    for parameter in state.optimizer.param_groups[0]["params"]:
        parameter.grad = None  # the memory of whoever gave it
    assert large_ones(LARGE) - before == 1 + kept


def test_averages_are_one_more():
    state, before = large_state(ema_decay=0.9)
    assert large_ones(LARGE) - before == 2
    assert state.averages is not None


@pytest.mark.parametrize(
    ("what", "more"),
    [
        (lambda state, one: state.apply(one), 0),
        (lambda state, one: state.apply(state.mean([one])), 0),
        (lambda state, one: state.apply(one, scale=0.5), 1),
        (lambda state, one: state.apply(state.mean([one, one])), 1),
    ],
    ids=["as it is", "the only one", "a shorter step", "a mean"],
)
def test_a_gradient_is_made_in_memory_of_its_own_only_where_one_is_made(what, more):
    state, before = large_state()
    one = slot_like(state)
    what(state, one)
    assert large_ones(LARGE) - before == 2 + more


def test_clipping_makes_one_where_the_gradient_is_too_long():
    for limit, more in ((1e9, 0), (1.0, 1)):
        state, before = large_state(clip_norm=limit)
        one = slot_like(state)
        state.apply(one)
        assert large_ones(LARGE) - before == 2 + more, limit
        del state, one


def test_a_copy_that_is_to_be_written_is_one():
    state, before = large_state(optimizer=OPTIMIZERS["momentum"])
    gradient = slot_like(state)
    state.apply(gradient)
    contents = state.contents()
    assert large_ones(LARGE) - before == 5  # parameters, momentum, the gradient, and a copy of the first two
    del contents
    assert large_ones(LARGE) - before == 3
