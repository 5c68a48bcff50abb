"""Options of recipes that cannot work are refused, by name and value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evener.errors import ConfigError

#: option -> (does a value fit?, what fits)
Ranges = Mapping[str, tuple[Callable[[float], bool], str]]


def check_ranges(ranges: Ranges, **numbers: float) -> None:
    """Refuse the first number outside its range. Raises ConfigError."""
    for name, value in numbers.items():
        fits, expected = ranges[name]
        check(name, value, fits(value), expected)


def check(name: str, value: object, fits: bool, expected: str) -> None:
    """Refuse an option unless it fits; `expected` says what does. Raises ConfigError."""
    if not fits:
        raise ConfigError(
            f"option {name}={value!r} cannot be used.",
            why=f"{name} is {expected}.",
            fix=f"set {name} to a value that is.",
        )
