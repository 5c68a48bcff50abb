"""Objects found by name: "package.module:attr" and "path/to/file.py:attr", there and back.

A recipe holds functions, and functions do not travel between processes (no pickle on any wire); their names do.
Every task of a run gets the same reference and makes the recipe for itself.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from evener.errors import ConfigError
from evener.recipes.neighbours import neighbours_of

#: Modules imported from a file by us are named so, plus the file's stem and a digest of its path.
PREFIX = "evener_file_"

#: Characters of what `sources_of` says, at most; of more files only the first is named.
LONGEST = 800

_importing: list[str] = []
#: Where files were that have been imported by a relative path: their code may change the current directory.
_files: dict[Path, Path] = {}


def importing() -> str | None:
    """The reference that is being imported just now, or None.

    A script that starts a run at its top level would start another one in each task that imports it; whoever starts
    runs can ask here and refuse.
    """
    return _importing[-1] if _importing else None


def find(reference: str) -> Any:
    """Import what `reference` names. An exception that the imported code raises passes through as it is.

    Raises:
        ConfigError: no such file, module or attribute.
    """
    place, _, attr = reference.rpartition(":")
    if not place or not attr:
        raise ConfigError(
            f"{reference!r} does not name an object.",
            why="it takes a module or a file, a colon, and a name in it.",
            fix="write package.module:name or path/to/file.py:name.",
        )
    module = _file(Path(place), reference) if place.endswith(".py") else _module(place, reference)
    found: Any = module
    for name in attr.split("."):
        if not hasattr(found, name):
            raise ConfigError(
                f"there is no {attr!r} in {place}.",
                why=f"the module was imported, but it has no such name{did_you_mean(name, vars(found))}.",
                fix=f"its own public names are: {', '.join(_public(module)) or 'none'}.",
            )
        found = getattr(found, name)
    return found


def reference_of(found: Any) -> str | None:
    """The reference by which another process finds this object again, or None if no name leads to it.

    Files are preferred to modules without a package: their directory may not be on another process's path.
    """
    for module in _modules_likely_to_hold(found):
        name = getattr(found, "__qualname__", None) if isinstance(found, FunctionType) else _name_in(module, found)
        if name is None or _lookup(module, name) is not found:
            continue
        place = _place(module)
        if place is not None:
            return f"{place}:{name}"
    return None


def place_of(function: Any) -> str:
    """Where a user wrote a function, for error messages: `` (train.py, line 12)``; empty where that is not known."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None) or getattr(getattr(function, "__func__", None), "__code__", None)
    return f" ({Path(code.co_filename).name}, line {code.co_firstlineno})" if code is not None else ""


def kind_of(value: object) -> str:
    """What a value is, for error messages."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"


def sources_of(reference: str) -> str:
    """The files that a recipe is made of, each with a digest: ``train.py:1a2b3c4d net.py:5e6f7a8b``.

    They are the file that `reference` names, which must have been imported, and those that it has imported from its
    directory or package, as far as they are not installed. Empty for recipes that evener ships.
    """
    place = reference.rpartition(":")[0]
    if not place or place.partition(".")[0] == "evener":
        return ""
    given = Path(place)
    # As `_file` found it: the recipe may have changed the current directory since.
    own = _files.get(given, given.expanduser().resolve()) if place.endswith(".py") else _file_of(sys.modules.get(place))
    if own is None:
        return ""
    root = own.parent
    while (root / "__init__.py").exists():
        root = root.parent
    known = {file for module in list(sys.modules.values()) if (file := _file_of(module)) is not None}
    files = [file for file in known | {own} if root in file.parents and "site-packages" not in file.parts]
    ordered = sorted(files, key=lambda file: (file != own, str(file)))
    digests = [f"{file.relative_to(root)}:{digest}" for file in ordered if (digest := _digest(file))]
    text = " ".join(digests)
    return text if len(text) <= LONGEST else f"{digests[0]} and {hashlib.sha256(text.encode()).hexdigest()[:16]}"


@functools.cache
def _digest(file: Path) -> str:
    """Once, soon after the file was imported: one that is edited later is not what this process runs."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    except OSError:
        return ""


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or file.startswith(str(Path(__file__).parent)):
        return None
    return Path(file).resolve()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A half sentence for error messages, empty when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _module(name: str, reference: str) -> ModuleType:
    try:
        # The console script's path begins with its own directory; people expect the current one, as with `python -m`.
        with _on_path(Path.cwd(), reference), _explained(name, None):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ConfigError(
            f"there is no module {name!r}.",
            why=f"{error.name!r} was not found in {Path.cwd()} or among the installed packages.",
            fix="check the spelling and the current directory, or give the file: path/to/file.py:name.",
        ) from None


def _file(path: Path, reference: str) -> ModuleType:
    given = path
    try:
        path = _files[given] if given in _files and not given.exists() else given.expanduser().resolve(strict=True)
    except OSError:
        raise ConfigError(
            f"there is no file {path}.",
            why=f"relative paths begin at the current directory, {Path.cwd()}.",
            fix="check the path before the colon.",
        ) from None
    main = sys.modules["__main__"]
    if (of_main := getattr(main, "__file__", None)) and Path(of_main).resolve() == path:
        return main  # the script that runs: importing it would run it again
    # The same file has the same name in every task, and two files called train.py do not meet.
    name = f"{PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the suffix .py always has a loader
    _files[given] = path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up there
    try:
        with _on_path(path.parent, reference), _explained(path.name, path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _explained(place: str, path: Path | None) -> Iterator[None]:
    """What a file does wrong when it is imported, and not when it is run as a program, is told as that."""
    try:
        yield
    except SystemExit as ended:
        frames = traceback.extract_tb(ended.__traceback__)
        parses = any(Path(frame.filename).name == "argparse.py" for frame in frames)
        mine = [frame for frame in frames if path is not None and Path(frame.filename) == path]
        line = f", line {mine[-1].lineno}," if mine else ""
        what = "reads the command line (argparse)" if parses else f"ends the program (sys.exit({ended.code}))"
        raise ConfigError(
            f"{place}{line} {what} when it is imported.",
            why="every task imports the file of its recipe; the command line is evener's own.",
            fix='put that under if __name__ == "__main__":; what a recipe can be told are the arguments of its '
            "function, given by --set NAME=VALUE.",
        ) from ended
    except ImportError as error:
        if path is None or "relative import" not in str(error):
            raise
        package = path.parent.name if (path.parent / "__init__.py").exists() else "PACKAGE"
        raise ConfigError(
            f"{place} imports its neighbours relatively ({error}).",
            why="a file that is named by its path belongs to no package.",
            fix=f"name it as a module, from the directory above {path.parent.name}: {package}.{path.stem}:recipe; or "
            "import its neighbours by their names: from model import net.",
        ) from error


@contextmanager
def _on_path(directory: Path, reference: str) -> Iterator[None]:
    """What is imported in this block is part of `reference`, and finds its neighbours in `directory`."""
    _importing.append(reference)
    try:
        with neighbours_of(directory):
            yield
    finally:
        _importing.pop()


def _modules_likely_to_hold(found: Any) -> Iterator[ModuleType]:
    """A function says where it is from. For other objects: where their functions are from, `__main__`, then all."""
    if isinstance(found, FunctionType):
        names = [found.__module__]
    else:
        parts = vars(found).values() if hasattr(found, "__dict__") else ()
        names = [part.__module__ for part in parts if isinstance(part, FunctionType)]
        names += ["__main__", *sys.modules]
    for name in dict.fromkeys(names):
        module = sys.modules.get(name)
        if isinstance(module, ModuleType):
            yield module


def _name_in(module: ModuleType, found: Any) -> str | None:
    return next((name for name, value in list(vars(module).items()) if value is found), None)


def _lookup(module: ModuleType, qualname: str) -> Any:
    value: Any = module
    for name in qualname.split("."):
        value = getattr(value, name, None)
    return value


def _place(module: ModuleType) -> str | None:
    """How another process imports this module, or None for a console, a notebook or `python -c`."""
    spec = getattr(module, "__spec__", None)
    name = spec.name if spec is not None else module.__name__
    if "." in name:
        return str(name)
    path = getattr(module, "__file__", None)
    if path is not None and path.endswith(".py") and Path(path).is_file():
        return str(Path(path).resolve())
    return None if name == "__main__" or name.startswith(PREFIX) else str(name)


def _public(module: ModuleType) -> list[str]:
    """Names that the module made itself, as far as can be told; imported functions and classes are left out."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", module.__name__) in (module.__name__, "evener.recipes.recipe")
    ]
