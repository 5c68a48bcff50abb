"""The recipes that ship: name -> where it is. A new one is its module, its test and a line here."""

from __future__ import annotations

RECIPES: dict[str, str] = {
    "mnist": "evener.recipes.mnist:mnist",
    "cifar10": "evener.recipes.cifar10:cifar10",
}
