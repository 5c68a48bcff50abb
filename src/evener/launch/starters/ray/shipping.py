"""What of a run's code Ray brings to the nodes: the directory where a person has started it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evener.settings import Settings

#: What belongs to a run or to a machine. What .gitignore names Ray leaves out by itself.
EXCLUDES = ["/evener-runs/", "**/.git/", "**/.venv/", "**/__pycache__/"]


def shipped(settings: Settings, start: Path, asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Ray's `runtime_env`, and the settings that name files, as they are on the nodes.

    Recipes that are installed, such as those that evener ships, need none.

    Args:
        start: the person's current directory.
        asked: the person's own runtime_env: what it names is not found out.
    """
    names = {name: value for name, value in (("recipe", settings.recipe), ("script", settings.script)) if value}
    there: dict[str, str] = {}
    environment = dict(asked)
    root = Path(start)
    for name, value in names.items():
        place, colon, attribute = (value, "", "") if name == "script" else value.rpartition(":")
        if not place.endswith(".py"):
            if not _lies_in(place.partition(".")[0] if place else "", root):
                continue
        else:
            path = (start / place).resolve()
            if not path.is_relative_to(root.resolve()):
                root = path.parent
            there[name] = f"{path.relative_to(root.resolve())}{colon}{attribute}"
        if "working_dir" not in environment and "py_modules" not in environment:
            environment["working_dir"] = str(root)
            environment["excludes"] = [*environment.get("excludes", []), *EXCLUDES]
    return environment, there


def _lies_in(package: str, root: Path) -> bool:
    """Whether this package is a file or a directory of the current directory, and not installed."""
    if not package or not ((root / f"{package}.py").is_file() or (root / package).is_dir()):
        return False
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    return spec is None or spec.origin is None or Path(spec.origin).resolve().is_relative_to(root.resolve())
