"""Options of a recipe function: texts such as "hidden=100" become arguments of the types that it declares."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
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

    The type is the annotation, else the type of the default: int, float, bool, str, `Path`, a `Literal`, an `Enum` (by
    its member's name or value), a tuple or list of these ("64,32"), or one of several of these or None (`int | str`).

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
    default, kind = parameter.default, hints.get(parameter.name)
    if kind in (None, list, tuple) and type(default) in (list, tuple) and len({type(item) for item in default}) == 1:
        item = type(default[0])
        return list[item] if type(default) is list else tuple[item, ...]  # type: ignore[valid-type]
    if parameter.name in hints:
        return kind
    return Any if default is None or default is parameter.empty else type(default)


def _value(name: str, value: object, wanted: Any) -> Any:
    """One value as `wanted`: a type, a union, a Literal, or several of a type. Raises ConfigError."""
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return _of_union(name, value, get_args(wanted))
    if origin is Literal:
        return _choice(name, value, get_args(wanted))
    if origin in _SEVERAL:
        return _several(name, value, wanted)
    if wanted in (int, float):
        return _number(name, value, wanted)
    kind = origin or wanted  # of dict[str, int] what holds them
    return _of_class(name, value, kind) if isinstance(kind, type) else value


def _choice(name: str, value: object, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if value == choice or str(value) == str(choice):
            return choice
    raise _refuse(name, value, "one of " + ", ".join(str(choice) for choice in choices))


def _of_class(name: str, value: object, wanted: type) -> Any:
    """Neither a number nor several values."""
    if wanted is bool:
        return _boolean(name, value)
    if issubclass(wanted, Enum):
        return _member(name, value, wanted)
    if not isinstance(value, str):
        if wanted is str:
            raise _refuse(name, value, "a text")
        return value
    if issubclass(wanted, Path):
        return wanted(value)
    if wanted.__module__ == "builtins" and not issubclass(str, wanted):
        # The function would go on with a text where it wants a dictionary.
        raise _refuse(name, value, f"of type {wanted.__name__}, which no text becomes; say it from Python")
    return value  # others may know what to do with a text, as `torch.device` does


def _of_union(name: str, value: Any, members: tuple[Any, ...]) -> Any:
    """The first member that the value fits; a text stays one if nothing else fits."""
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        if type(None) in members:
            return None
    elif not isinstance(value, str) and len(members) > 2:
        return value
    members = tuple(member for member in members if member is not type(None))
    if len(members) == 1:
        return _value(name, value, members[0])
    for member in sorted(members, key=lambda member: member is str):
        try:
            return _value(name, value, member)
        except ConfigError:
            continue
    raise _refuse(name, value, " or ".join(getattr(member, "__name__", str(member)) for member in members))


#: What holds several values of one type, and what they are put into.
_SEVERAL: Mapping[Any, Callable[[Iterable[Any]], Any]] = {
    tuple: tuple, list: list, set: set, frozenset: frozenset, Sequence: tuple, Iterable: tuple,
}  # fmt: skip


def _several(name: str, value: Any, wanted: Any) -> Any:
    """Values between commas, in brackets or not, each of its type. `value` is a text, or holds values already."""
    kinds, put = get_args(wanted), _SEVERAL[get_origin(wanted)]
    if isinstance(value, str):
        text = value.strip()
        text = text[1:-1] if text[:1] + text[-1:] in ("()", "[]", "{}") else text
        value = [item.strip() for item in text.removesuffix(",").split(",")] if text else []
    if not isinstance(value, list | tuple | set | frozenset):
        raise _refuse(name, value, "values between commas")
    if get_origin(wanted) is not tuple or (len(kinds) == 2 and kinds[1] is ...):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise _refuse(name, ",".join(map(str, value)), f"{len(kinds)} values between commas")
    return put(_value(name, item, kind) for item, kind in zip(value, kinds, strict=True))


def _member(name: str, value: object, wanted: type[Enum]) -> Enum:
    for member in wanted:
        if value is member or (isinstance(value, str) and value in (member.name, str(member), str(member.value))):
            return member
    raise _refuse(name, value, "one of " + ", ".join(member.name for member in wanted))


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
