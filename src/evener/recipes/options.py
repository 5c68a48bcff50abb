"""Options of a recipe function: texts such as "hidden=100" become arguments of the types that it declares."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from evener.errors import ConfigError
from evener.recipes.references import did_you_mean

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function and their defaults, in order; `inspect.Parameter.empty` where one must be given."""
    return {name: parameter.default for name, parameter in _parameters(function).items()}


def convert(function: Callable[..., Any], options: Mapping[str, object], owner: str) -> dict[str, Any]:
    """Check options against a function's parameters and convert texts to the declared types.

    The type is the annotation, else the type of the default: int, float, bool, str, `Path`, a `Literal`, or one of
    these `| None`.

    Args:
        function: what the options are for.
        options: name -> a text, or a value that has the right type already.
        owner: the function's name in error messages.

    Raises:
        ConfigError: an unknown option, a missing one, or a value of another type.
    """
    parameters = _parameters(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    for name in options:
        if name not in parameters and not takes_any:
            raise ConfigError(
                f"{owner} has no option {name!r}.",
                why=f"the name is not among its parameters{did_you_mean(name, parameters)}.",
                fix=f"its options are: {', '.join(parameters) or 'none'}.",
            )
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in options]
    if missing:
        raise ConfigError(
            f"{owner} needs a value for {', '.join(map(repr, missing))}.",
            why="the parameter has no default.",
            fix=f"give it: {missing[0]}=VALUE.",
        )
    hints = _hints(function)
    return {
        name: _value(name, value, _wanted(parameters[name], hints)) if name in parameters else value
        for name, value in options.items()
    }


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(function).parameters.items() if p.kind in _NAMED}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # an annotation that cannot be evaluated (TYPE_CHECKING imports) is the same as none
        return {}


def _wanted(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    if parameter.name in hints:
        return hints[parameter.name]
    return type(parameter.default) if parameter.default not in (None, parameter.empty) else Any


def _value(name: str, value: object, wanted: Any) -> Any:
    """One value as `wanted`, a type, a union with None, or a Literal. Types that no text can name pass through."""
    if get_origin(wanted) in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        members = [member for member in get_args(wanted) if member is not type(None)]
        return _value(name, value, members[0]) if len(members) == 1 else value
    if get_origin(wanted) is Literal:
        for choice in get_args(wanted):
            if value == choice or str(value) == str(choice):
                return choice
        raise _refuse(name, value, "one of " + ", ".join(str(choice) for choice in get_args(wanted)))
    if wanted is bool:
        return _boolean(name, value)
    if wanted in (int, float):
        return _number(name, value, wanted)
    if wanted is str and not isinstance(value, str):
        raise _refuse(name, value, "a text")
    return Path(value) if wanted is Path and isinstance(value, str) else value


def _boolean(name: str, value: object) -> bool:
    text = str(value).lower()
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise _refuse(name, value, "true or false")


def _number(name: str, value: Any, wanted: type[int] | type[float]) -> int | float:
    kind = "a whole number" if wanted is int else "a number"
    # bool is an int to Python, and int(2.5) is 2: neither is what a person means.
    if isinstance(value, bool) or (wanted is int and isinstance(value, float)):
        raise _refuse(name, value, kind)
    try:
        return wanted(value)
    except (TypeError, ValueError):
        raise _refuse(name, value, kind) from None


def _refuse(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        f"option {name}={value!r} cannot be used.",
        why=f"{name} is {expected}.",
        fix=f"give {expected}: {name}=VALUE.",
    )
