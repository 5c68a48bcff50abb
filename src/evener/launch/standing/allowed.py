"""What the owner of a standing server lets its clients ask for: their key is for starting runs, for nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from evener.errors import ConfigError, SecurityError
from evener.launch.starters.remote import check_recipe
from evener.recipes import RECIPES


@dataclass(frozen=True, slots=True)
class Allowed:
    """Recipes by name or pattern, and directories that runs may write below."""

    recipes: tuple[str, ...] = tuple(RECIPES)
    logdirs: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()  # directories

    @classmethod
    def of(cls, recipes: Sequence[str], logdirs: Sequence[str], scripts: Sequence[str] = ()) -> Allowed:
        """As the owner wrote them, seen from the current directory.

        Raises:
            ConfigError: a directory that is not there.
        """
        places = _directories("--logdirs", logdirs or (os.getcwd(),))
        return cls(tuple(recipes) or tuple(RECIPES), places, _directories("--scripts", scripts))

    def told(self) -> str:
        """For people."""
        programs = f"; programs in {', '.join(self.scripts)}" if self.scripts else ""
        return f"recipes {', '.join(self.recipes)}{programs}; runs write below {', '.join(self.logdirs)}"

    def check_script(self, script: str) -> str:
        """Where the program lies that a client has named, relative to a directory that the owner has allowed.

        Raises:
            SecurityError: there is none.
        """
        for place in self.scripts:
            real = os.path.realpath(os.path.join(place, script))
            if real.startswith(place.rstrip("/") + "/") and real.endswith(".py") and os.path.isfile(real):
                return real
        allowed = f"the programs in {', '.join(self.scripts)}" if self.scripts else "no programs"
        raise SecurityError(
            f"this server does not run {script!r}.",
            why=f"whoever started it allowed {allowed}; no program is sent to it.",
            fix="put it there, or start the server with --scripts DIR, if its code may run.",
        )

    def check(self, name: str) -> None:
        """A recipe, or a program with a loop of its own. Raises SecurityError unless it is allowed."""
        if name.endswith(".py"):
            self.check_script(name)
        else:
            check_recipe(name)
            self.check_recipe(name)

    def check_recipe(self, recipe: str) -> None:
        """Refuse a recipe that the owner has not allowed: before anything of it is imported.

        Raises:
            SecurityError: it is one.
        """
        module, colon, _ = recipe.partition(":")
        own = [pattern for pattern in self.recipes if pattern not in RECIPES]
        if recipe not in self.recipes and not (
            colon and any(fnmatchcase(recipe, pattern) or fnmatchcase(module, pattern) for pattern in own)
        ):
            raise SecurityError(
                f"this server does not take the recipe {recipe!r}.",
                why=f"whoever started it allowed {', '.join(self.recipes)}.",
                fix=f"start it with --recipes {module}, if its code may run there.",
            )

    def check_logdir(self, logdir: str) -> None:
        """Refuse a logdir elsewhere.

        Raises:
            SecurityError: it is.
        """
        real = os.path.realpath(logdir)
        if self.logdirs and not any(
            real == place or real.startswith(place.rstrip("/") + "/") for place in self.logdirs
        ):
            raise SecurityError(
                f"this server does not write to {logdir}.",
                why=f"whoever started it allowed {', '.join(self.logdirs)}.",
                fix="choose a --logdir below one of these, or start it with --logdirs DIR.",
            )


def _directories(option: str, places: Sequence[str]) -> tuple[str, ...]:
    real = tuple(os.path.realpath(place) for place in places)
    for place in real:
        if not os.path.isdir(place):
            raise ConfigError(f"{option} names {place}, which is no directory.", fix="make it first.")
    return real
