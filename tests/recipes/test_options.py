"""Texts become arguments of the declared types, or an error that names option, value and type."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Optional

import pytest

from evener.errors import ConfigError
from evener.recipes.options import convert, defaults

if TYPE_CHECKING:
    from nowhere import Unknown


class Activation(Enum):
    TANH = "th"
    RELU = "max"


def typed(
    *,
    whole: int = 1,
    real: float = 1.0,
    flag: bool = False,
    text: str = "",
    maybe: float | None = None,
    old: Optional[int] = None,  # noqa: UP045
    choice: Literal["a", "b", 3] = "a",
    place: Path = Path(),
    either: int | str = 1,
    sizes: tuple[int, ...] = (64, 32),
    pair: tuple[str, float] = ("a", 1.0),
    listed: list[Path] | None = None,
    several: Sequence[bool] = (),
    activation: Activation = Activation.TANH,
    table: dict[str, int] = {},  # noqa: B006 - nobody changes it
    any_list: list = [],  # noqa: B006
):
    pass


def guessed(whole=1, real=1.0, flag=True, text="", nothing=None, sizes=(64, 32), place=Path()):
    pass


def unevaluated(whole=1, other: Unknown = None):
    pass


GOOD = [
    ("whole", "100", 100),
    ("whole", "-3", -3),
    ("whole", 7, 7),
    ("real", "1e-4", 1e-4),
    ("real", 3, 3.0),
    ("flag", "true", True),
    ("flag", "Off", False),
    ("flag", "1", True),
    ("flag", False, False),
    ("text", "100", "100"),
]


@pytest.mark.parametrize("function", [typed, guessed])
@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_values_become_the_declared_type_or_that_of_the_default(function, name, value, expected):
    found = convert(function, {name: value}, "f")[name]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("maybe", "none", None),
        ("maybe", None, None),
        ("maybe", "0.5", 0.5),
        ("old", "3", 3),
        ("choice", "b", "b"),
        ("choice", "3", 3),
        ("place", "a/b", Path("a/b")),
        ("place", Path("a"), Path("a")),
        ("either", "x", "x"),
        ("either", "5", 5),
        ("either", 5, 5),
    ],
)
def test_none_choices_and_paths(name, value, expected):
    assert convert(typed, {name: value}, "f") == {name: expected}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sizes", "64,32", (64, 32)),
        ("sizes", "(64, 32)", (64, 32)),
        ("sizes", "64,", (64,)),
        ("sizes", "", ()),
        ("sizes", [64, 32], (64, 32)),  # as a checkpoint has it
        ("pair", "b,2", ("b", 2.0)),
        ("listed", "[a/b,c]", [Path("a/b"), Path("c")]),
        ("listed", "none", None),
        ("several", "yes,no", (True, False)),
    ],
)
def test_several_values_stand_between_commas(name, value, expected):
    found = convert(typed, {name: value}, "f")[name]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", ["RELU", "max", "Activation.RELU", Activation.RELU])
def test_a_member_of_an_enum_is_named_or_given(value):
    assert convert(typed, {"activation": value}, "f") == {"activation": Activation.RELU}


def test_values_like_those_of_the_default_where_nothing_is_declared():
    assert convert(guessed, {"sizes": "8,4", "place": "a"}, "f") == {"sizes": (8, 4), "place": Path("a")}


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("whole", "1.5", "a whole number"),
        ("whole", 1.5, "a whole number"),
        ("whole", True, "a whole number"),
        ("whole", "", "a whole number"),
        ("whole", None, "a whole number"),
        ("real", "fast", "a number"),
        ("flag", "maybe", "true or false"),
        ("flag", 2, "true or false"),
        ("text", 3, "a text"),
        ("maybe", "much", "a number"),
        ("choice", "c", "one of a, b, 3"),
        ("sizes", "x", "a whole number"),
        ("sizes", 64, "values between commas"),
        ("pair", "b", "2 values between commas"),
        ("activation", "relu", "one of TANH, RELU"),
        ("table", "a=1", "dict"),
        ("any_list", "a,b", "list"),
    ],
)
def test_other_values_are_refused_with_name_value_and_type(name, value, kind):
    with pytest.raises(ConfigError) as caught:
        convert(typed, {name: value}, "f")
    assert f"{name}={value!r}" in caught.value.what
    assert kind in caught.value.why


def test_annotations_that_cannot_be_evaluated_count_as_none():
    assert convert(unevaluated, {"whole": "2", "other": "x"}, "f") == {"whole": 2, "other": "x"}
    assert convert(guessed, {"nothing": "x"}, "f") == {"nothing": "x"}


def test_a_missing_option_is_asked_for():
    def needs(path, size: int):
        pass

    with pytest.raises(ConfigError, match=r"f needs a value for 'path'\.") as caught:
        convert(needs, {"size": 1}, "f")
    assert "path=VALUE" in caught.value.fix


def test_a_function_of_any_options_gets_them_as_they_are():
    def loose(width: int = 1, **others):
        pass

    assert convert(loose, {"width": "2", "depth": "3"}, "f") == {"width": 2, "depth": "3"}
    assert defaults(loose) == {"width": 1}


def test_defaults_come_in_order():
    assert list(defaults(guessed).items())[:2] == [("whole", 1), ("real", 1.0)]
    assert defaults(lambda given: None) == {"given": inspect.Parameter.empty}
