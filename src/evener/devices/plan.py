"""Which module goes on which device: modules x wanted x existing -> given. Decides only; no PyTorch here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evener.errors import ConfigError

_NAME = re.compile(r"(cpu|cuda|gpu|mps|xpu|meta)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Device:
    """A device that exists. Memory is in bytes; None: unknown, or not asked for."""

    name: str  # as PyTorch names it: "cpu", "cuda:0"
    description: str = ""
    total: int | None = None
    free: int | None = None
    cores: int | None = None  # of a processor

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class ModulePart:
    """A module and the tensors that it holds itself, not through a submodule."""

    name: str  # "features.0"; "" is the whole model
    kind: str = ""  # of its class: "Conv2d"
    tensors: tuple[tuple[str, int, int], ...] = ()  # (name, parameters in it, bytes); a shared one has one name


@dataclass(frozen=True, slots=True)
class Placed:
    """A module of a plan, with the tensors that it holds itself."""

    name: str
    kind: str
    parameters: int
    nbytes: int
    wanted: str
    given: str
    asked: bool  # somebody named this very module


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision for a whole model: every module that holds tensors or was named, in the model's order."""

    placed: tuple[Placed, ...]
    warning: str = ""  # names what did not get the device that it wanted; empty: everything did

    @property
    def devices(self) -> tuple[str, ...]:
        """In use, in order of first use."""
        return tuple(dict.fromkeys(entry.given for entry in self.placed))

    def table(self) -> str:
        """module / parameters / bytes / device, one line each, and the sum of each device."""
        rows = [(_label(e), f"{e.parameters:,}", size(e.nbytes), _given(e)) for e in self.placed]
        for device in self.devices:
            mine = [entry for entry in self.placed if entry.given == device]
            total = sum(entry.parameters for entry in mine), sum(entry.nbytes for entry in mine)
            rows.append(("all", f"{total[0]:,}", size(total[1]), device))
        head = ("module", "parameters", "bytes", "device")
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(4)]
        return "\n".join(
            f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}" for row in [head, *rows]
        )


def _label(entry: Placed) -> str:
    return " ".join(filter(None, [entry.name or "(model)", f"({entry.kind})" if entry.kind else ""]))


def _given(entry: Placed) -> str:
    return entry.given if entry.given == entry.wanted else f"{entry.given} (wanted {entry.wanted})"


def canonical(name: str) -> str:
    """PyTorch's name of a device. TensorFlow's are understood.

    Raises:
        ConfigError: it is no device's name.

    >>> [canonical(name) for name in ("cuda", "/gpu:1", "/device:GPU:0", "CPU:0")]
    ['cuda:0', 'cuda:1', 'cuda:0', 'cpu']
    """
    found = _NAME.fullmatch(str(name).strip().lower().removeprefix("/").removeprefix("device:"))
    if found is None:
        raise ConfigError(f"{name!r} is no device.", fix="write cpu, cuda:0, cuda:1, ...; `evener devices` lists them.")
    kind, index = "cuda" if found[1] == "gpu" else found[1], found[2]
    if kind in ("cpu", "meta"):
        return kind if index in (None, "0") else f"{kind}:{int(index)}"
    return f"{kind}:{int(index or 0)}"


def parse(text: str) -> dict[str, str]:
    """What --place says: "features=cuda:0,classifier=cuda:1", or one device for the whole model.

    Raises:
        ConfigError: it is neither.
    """
    wanted: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        module, equals, device = entry.rpartition("=")
        if module.strip() in wanted:
            whose = f"module {module.strip()!r}" if equals else "the whole model"
            raise ConfigError(f"--place {text} places {whose} twice.", fix="give each module one device.")
        wanted[module.strip()] = canonical(device)
    return wanted


def merged(named: Mapping[str, str], marked: Mapping[str, str]) -> dict[str, str]:
    """What a run asks for by name counts more than what the recipe's own code marked inside it."""
    kept = {name: device for name, device in marked.items() if _nearest(name, named) is None}
    return {**{name: canonical(device) for name, device in kept.items()},
            **{name: canonical(device) for name, device in named.items()}}  # fmt: skip


def plan(
    parts: Sequence[ModulePart],
    wanted: Mapping[str, str],
    existing: Sequence[Device],
    *,
    soft: bool = True,
    default: str = "cpu",
) -> Plan:
    """Decide where every module goes.

    A module goes where it, or its nearest named ancestor, is wanted, else to `default`. What a device cannot take (it
    does not exist, or has less free memory than the parameters and buffers need) goes to the CPU as a whole, with one
    warning; TensorFlow's soft placement (SEMANTICS P11), which is on here.

    Args:
        parts: every module of the model, in its order.
        wanted: module name -> device; "" is the whole model.
        existing: the devices; their memory is compared where it is known.
        soft: False: raise where it would warn.

    Raises:
        ConfigError: a module that the model lacks, a device that cannot take its modules and `soft` is off, or two
            modules that share a tensor on two devices.
    """
    wanted = {name: canonical(device) for name, device in wanted.items()}
    _check_names(parts, wanted)
    group_of = {part.name: _nearest(part.name, wanted) for part in parts}
    where = _given_to_groups(parts, group_of, wanted, canonical(default), existing)
    refused = {group: found for group, found in where.items() if found[2]}
    if refused and not soft:
        raise ConfigError(
            f"{_told(refused, '')}.",
            why="soft placement is off, so nothing goes to the CPU instead.",
            fix=f"the devices that exist: {', '.join(device.name for device in existing)}; or use --soft-placement.",
        )
    placed = []
    for part in parts:
        group = group_of[part.name]
        want, given, _ = where[group]
        if part.tensors or part.name in wanted:
            count, nbytes = sum(t[1] for t in part.tensors), sum(t[2] for t in part.tensors)
            placed.append(Placed(part.name, part.kind, count, nbytes, want, given, part.name in wanted))
    _check_shared(parts, {part.name: where[group_of[part.name]][1] for part in parts})
    return Plan(tuple(placed), _told(refused, ", is on cpu"))


def _given_to_groups(
    parts: Sequence[ModulePart],
    group_of: Mapping[str, str | None],
    wanted: Mapping[str, str],
    default: str,
    existing: Sequence[Device],
) -> dict[str | None, tuple[str, str, str]]:
    """For each group: (wanted, given, why it is not the same). Groups come in the model's order, so that is who gets
    the last free memory."""
    devices = {device.name: device for device in existing}
    left = {device.name: device.free for device in existing}
    seen: set[str] = set()
    need: dict[str | None, int] = {}
    for part in parts:
        fresh = [tensor for tensor in part.tensors if tensor[0] not in seen]
        seen |= {tensor[0] for tensor in fresh}
        need[group_of[part.name]] = need.get(group_of[part.name], 0) + sum(tensor[2] for tensor in fresh)
    found: dict[str | None, tuple[str, str, str]] = {}
    for group, nbytes in need.items():
        want = default if group is None else wanted[group]
        free = left.get(want)
        if want not in devices and (group is not None or nbytes):
            found[group] = (want, "cpu", f"there is no {want}")
        elif want != "cpu" and free is not None and nbytes > free:
            found[group] = (want, "cpu", f"{want} has {size(free)} free, it needs {size(nbytes)}")
        else:
            found[group] = (want, want, "")
            if free is not None:
                left[want] = free - nbytes
    return found


def _told(refused: Mapping[str | None, tuple[str, str, str]], instead: str) -> str:
    """One sentence for all that did not get its device: modules, wanted and given device, reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for group, (wanted, _, why) in refused.items():
        names.setdefault((wanted, why), []).append(group or "the model")
    return "; ".join(f"{', '.join(who)} wanted {wanted}{instead}: {why}" for (wanted, why), who in names.items())


def _nearest(name: str, wanted: Mapping[str, str]) -> str | None:
    """The module itself or its nearest ancestor that is named."""
    while name not in wanted and name:
        name = name.rpartition(".")[0]
    return name if name in wanted else None


def _check_names(parts: Sequence[ModulePart], wanted: Iterable[str]) -> None:
    names = [part.name for part in parts if part.name]
    for name in wanted:
        if name and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            top = ", ".join(known for known in names if "." not in known) or "none"
            raise ConfigError(
                f"the model has no module {name!r} to place.",
                fix=f"did you mean {near[0]!r}?" if near else f"its modules are: {top}, and those inside them.",
            )


def _check_shared(parts: Sequence[ModulePart], given: Mapping[str, str]) -> None:
    homes: dict[str, str] = {}
    for part in parts:
        for tensor, _, _ in part.tensors:
            first = homes.setdefault(tensor, part.name)
            if given[first] != given[part.name]:
                raise ConfigError(
                    f"{first or 'the model'!r} and {part.name or 'the model'!r} share {tensor!r}, "
                    f"but are placed on {given[first]} and {given[part.name]}.",
                    why="a tensor lies on one device.",
                    fix="place both on the same device.",
                )


def size(nbytes: int) -> str:
    """For people.

    >>> size(999), size(4_096_000)
    ('999 B', '4.1 MB')
    """
    amount = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
