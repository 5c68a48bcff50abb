"""Whose hyperparameters count when a run continues: one rule, parameter by parameter, and each difference is told."""

from __future__ import annotations

import itertools

import msgspec
import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, MultiStepLR, OneCycleLR, SequentialLR
from training import assert_equal, fresh, recipe_of, shards_of, train, whole_of

from evener.errors import CheckpointError
from evener.state.contents import Contents
from evener.state.state import State
from evener.state.tensors import specs_of
from evener.wire.layout import Layout


def grouped(*groups, lr=0.01, **settings):
    """An optimizer of groups, each (which names, settings)."""

    def made(model):
        named = list(model.named_parameters())
        return AdamW(
            [{"params": [p for name, p in named if of_group(name)], **its} for of_group, its in groups],
            lr=lr, **settings,
        )  # fmt: skip

    return made


def ends(*words):
    return lambda name: name.endswith(words)


WEIGHTS = (ends("first.weight", "second.weight"), {"weight_decay": 0.1, "lr": 0.01})
OTHERS = (
    lambda name: not name.endswith(("first.weight", "second.weight")) and name != "fixed",
    {"weight_decay": 0.0, "lr": 0.001},
)
ALL = (lambda name: name != "fixed", {"weight_decay": 0.05, "lr": 0.02})
FIRST = (ends("first.weight", "first.bias"), {"weight_decay": 0.3, "lr": 0.003})
REST = (lambda name: not name.startswith("first") and name != "fixed", {"weight_decay": 0.4, "lr": 0.004})
GROUPS = {
    "weights, others": [WEIGHTS, OTHERS],
    "others, weights": [OTHERS, WEIGHTS],
    "one": [ALL],
    "first layer, rest": [FIRST, REST],
    "three": [
        (ends("first.weight"), WEIGHTS[1]), (ends("second.weight"), {"weight_decay": 0.2, "lr": 0.02}), OTHERS,
    ],
}  # fmt: skip


def continued(recipe, contents, *, shards=1, hyperparameters="checkpoint") -> tuple[list[State], list[str]]:
    """States that go on, and what shard 0 tells of differences; all shards tell the same."""
    layout = Layout(specs_of(fresh(recipe)), shards=shards)
    states = [State(fresh(recipe), recipe, layout, shard=shard) for shard in range(shards)]
    told = [state.begin(3, through_json(contents), hyperparameters=hyperparameters) for state in states]
    assert all(sentences == told[0] for sentences in told)
    return states, told[0]


def through_json(contents: Contents) -> Contents:
    """As a manifest keeps it."""
    values = msgspec.json.decode(msgspec.json.encode(contents.values))
    return Contents(contents.step, contents.parameters, contents.averages, contents.optimizer, values)


def settings_of(state: State, *keys: str) -> dict[str, tuple]:
    """Of each parameter, by name."""
    return {
        name: tuple(float(group[key]) for key in keys)
        for names, group in zip(state._names, state.optimizer.param_groups, strict=True)
        for name in names
    }


def after(recipe, steps=3) -> tuple[State, Contents]:
    (state,) = shards_of(recipe)
    train([state], steps)
    return state, state.contents()


CHANGES = pytest.mark.parametrize(("before", "now"), list(itertools.permutations(GROUPS, 2)))


@CHANGES
@pytest.mark.parametrize("shards", [1, 3])
def test_each_parameter_keeps_the_settings_of_the_checkpoint_however_it_is_grouped(before, now, shards):
    old, contents = after(recipe_of(grouped(*GROUPS[before])))
    states, told = continued(recipe_of(grouped(*GROUPS[now])), contents, shards=shards)

    for state in states:
        assert settings_of(state, "lr", "weight_decay") == settings_of(old, "lr", "weight_decay")
    if {before, now} == {"weights, others", "others, weights"}:
        assert told == [], "the same groups, in whatever order"
    else:
        assert any(
            f"in {len(GROUPS[before])} groups as in the checkpoint, not in {len(GROUPS[now])}" in s for s in told
        )
    train([old], 3)
    train(states, 3)
    assert_equal(whole_of(states), whole_of([old]))


@CHANGES
def test_or_those_of_the_recipe(before, now):
    _, contents = after(recipe_of(grouped(*GROUPS[before])))
    asked = recipe_of(grouped(*GROUPS[now]))
    (state,), _ = continued(asked, contents, hyperparameters="recipe")

    assert settings_of(state, "lr", "weight_decay") == settings_of(shards_of(asked)[0], "lr", "weight_decay")


@CHANGES
@pytest.mark.parametrize("whose", ["checkpoint", "recipe"])
def test_every_setting_that_differs_is_told(before, now, whose):
    """Each pair of values that some parameter has there and here."""
    _, contents = after(recipe_of(grouped(*GROUPS[before])))
    asked = recipe_of(grouped(*GROUPS[now]))
    _, told = continued(asked, contents, hyperparameters=whose)

    theirs = settings_of(shards_of(recipe_of(grouped(*GROUPS[before])))[0], "weight_decay", "lr")
    mine = settings_of(shards_of(asked)[0], "weight_decay", "lr")
    for index, key in enumerate(("weight_decay", "lr")):
        for then, is_now in {(theirs[name][index], mine[name][index]) for name in mine}:
            if then != is_now:
                said = f"{then} as in the checkpoint, not {is_now} as asked now" if whose == "checkpoint" else (
                    f"{is_now} as asked now, not {then} as in the checkpoint"
                )  # fmt: skip
                assert any(said in s and s.startswith(key) for s in told), (said, told)


@pytest.mark.parametrize("whose", ["checkpoint", "recipe"])
@pytest.mark.parametrize(
    ("key", "then", "now"), [("eps", 1e-8, 1e-6), ("betas", (0.9, 0.999), (0.8, 0.9)), ("amsgrad", False, True)]
)
def test_settings_of_all_groups_are_told_too(key, then, now, whose):
    _, contents = after(recipe_of(grouped(ALL, **{key: then})))
    _, told = continued(recipe_of(grouped(ALL, **{key: now})), contents, hyperparameters=whose)
    assert len(told) == 1
    assert all(word in told[0] for word in (key, str(then), str(now)))


def test_a_checkpoint_of_0_1_0_has_groups_without_names_which_count_in_order():
    _, contents = after(recipe_of(grouped(WEIGHTS, OTHERS)))
    for group in contents.values["groups"]:
        del group["params"]
    states, told = continued(recipe_of(grouped(WEIGHTS, OTHERS)), contents)
    assert told == []
    assert settings_of(states[0], "lr")["first.weight"] == (0.01,)
    with pytest.raises(CheckpointError, match="has 2 parameter groups, the recipe's optimizer has 1"):
        continued(recipe_of(grouped(ALL)), contents)
    (state,), _ = continued(recipe_of(grouped(ALL)), contents, hyperparameters="recipe")
    assert settings_of(state, "lr")["first.weight"] == (0.02,)


# --- learning rates and schedules


@pytest.mark.parametrize("shards", [1, 3])
def test_a_learning_rate_that_is_a_tensor_continues_bit_for_bit(shards):
    recipe = recipe_of(
        lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01)),
        lr_scheduler=lambda optimizer, _: ExponentialLR(optimizer, 0.9),
    )
    whole, contents = after(recipe)
    states, told = continued(recipe, contents, shards=shards)
    assert told == []
    assert isinstance(states[0].optimizer.param_groups[0]["lr"], torch.Tensor)
    for _ in range(3):
        assert states[0].learning_rate == whole.learning_rate
        train([whole], 1)
        train(states, 1)
    assert_equal(whole_of(states), whole_of([whole]))


SCHEDULES = {
    "T_max": (lambda o, _: CosineAnnealingLR(o, T_max=20), lambda o, _: CosineAnnealingLR(o, T_max=40)),
    "milestones": (lambda o, _: MultiStepLR(o, [2, 9], 0.1), lambda o, _: MultiStepLR(o, [5, 6], 0.1)),
    "gamma": (lambda o, _: ExponentialLR(o, 0.9), lambda o, _: ExponentialLR(o, 0.5)),
    "total_steps": (lambda o, _: OneCycleLR(o, 0.1, 10), lambda o, _: OneCycleLR(o, 0.1, 20)),
    "milestones ": (
        lambda o, _: SequentialLR(o, [ExponentialLR(o, 0.9), ExponentialLR(o, 0.5)], [2]),
        lambda o, _: SequentialLR(o, [ExponentialLR(o, 0.9), ExponentialLR(o, 0.5)], [6]),
    ),
    "gamma ": (
        lambda o, _: SequentialLR(o, [ExponentialLR(o, 0.9), ExponentialLR(o, 0.5)], [2]),
        lambda o, _: SequentialLR(o, [ExponentialLR(o, 0.9), ExponentialLR(o, 0.7)], [2]),
    ),
}


def rates_of(state, steps=5):
    found = []
    for _ in range(steps):
        found.append(state.learning_rate)
        train([state], 1)
    return found


@pytest.mark.parametrize("what", SCHEDULES)
def test_another_schedule_in_an_old_logdir_is_told_and_one_of_both_counts_as_a_whole(what):
    """Never a mixture: no new milestone on top of an old decay."""
    before, now = (recipe_of(grouped(ALL), lr_scheduler=schedule) for schedule in SCHEDULES[what])
    old, contents = after(before)
    fresh_one, _ = after(now)

    (state,), told = continued(now, contents)
    assert any(f"{what.strip()} of the schedule stays" in sentence for sentence in told), told
    assert rates_of(state) == rates_of(old)

    (state,), told = continued(now, contents, hyperparameters="recipe")
    assert any(f"{what.strip()} of the schedule is" in sentence for sentence in told), told
    assert rates_of(state) == pytest.approx(rates_of(fresh_one))


@pytest.mark.parametrize("now", ["weights, others", "others, weights"])
def test_a_schedule_follows_groups_into_another_order(now):
    def recipe(groups):
        return recipe_of(grouped(*GROUPS[groups]), lr_scheduler=lambda o, _: CosineAnnealingLR(o, T_max=10))

    old, contents = after(recipe("weights, others"))
    states, told = continued(recipe(now), contents)
    assert told == []
    for _ in range(4):
        assert settings_of(states[0], "lr") == settings_of(old, "lr")
        train([old], 1)
        train(states, 1)
    assert_equal(whole_of(states), whole_of([old]))


def test_a_schedules_lists_by_group_follow_the_groups_when_these_come_in_another_order():
    from evener.state.hyperparameters import Groups

    made = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameter]} for parameter in made], lr=0.1)
    groups = Groups(optimizer, [["b"], ["a"]], {}, [{"params": ["a"]}, {"params": ["b"]}])

    assert groups.reordered({"base_lrs": [1.0, 2.0], "last_epoch": 3}) == {"base_lrs": [2.0, 1.0], "last_epoch": 3}
