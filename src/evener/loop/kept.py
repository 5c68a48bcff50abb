"""What a program keeps besides its models and optimizers: how far its schedulers are, and what it put into `ev.state`.

It travels and is saved as JSON; tensors in it are base64 of safetensors.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from torch import Tensor

from evener.errors import ConfigError
from evener.loop.parts import Scheduler
from evener.state.values import pack, unpack

#: Bytes of it: it travels in front of a gradient, and lies in each checkpoint's manifest.
LARGEST = 64 << 10


@dataclass(slots=True)
class Kept:
    """One program's.

    `state` is the user's own. `version` is that up to which its schedulers had counted when it was told; `ahead` is how
    many passes over its loader it has begun more than epochs; `inside` says of each scheduler whether it goes by the
    version; `glances` is how often it has looked at its loader before it trained.
    """

    state: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    passes: int = 0
    ahead: int = 0
    schedulers: list[Any] = field(default_factory=list)
    settings: list[Any] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)  # further names of tensors, and the first, for `evener export`
    inside: list[bool] = field(default_factory=list)
    glances: int = 0

    def packed(self) -> bytes:
        """Raises ConfigError for what cannot be kept."""
        try:
            told = {
                "state": _out(self.state), "version": self.version, "passes": self.passes, "ahead": self.ahead,
                "schedulers": pack(self.schedulers), "settings": pack(self.settings),
                "tied": self.tied, "inside": self.inside, "glances": self.glances,
            }  # fmt: skip
            text = json.dumps(told).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"ev.state holds what cannot be kept: {error}.",
                why="it is saved with each checkpoint, as JSON and tensors.",
                fix="put numbers, texts, lists, dictionaries and tensors there.",
            ) from error
        if len(text) > LARGEST:
            raise ConfigError(
                f"ev.state takes {len(text)} bytes, the most is {LARGEST}.",
                why="it travels with gradients, and lies in each checkpoint's manifest.",
                fix="keep large tensors in the model (register_buffer), or in a file of your own.",
            )
        return text


def unpacked(text: bytes) -> Kept | None:
    """None where nothing was kept."""
    if not text:
        return None
    told = json.loads(text)
    return Kept(
        _in(told["state"]), told["version"], told["passes"], told["ahead"], unpack(told["schedulers"]),
        unpack(told["settings"]), told["tied"], told.get("inside", []), told.get("glances", 0),
    )  # fmt: skip


def states_of(schedulers: Sequence[Scheduler]) -> list[Any]:
    """How far each is, as far as it can be kept as plain values."""
    return [
        {key: value for key, value in scheduler.state_dict().items() if _plain(value)} for scheduler in schedulers
    ]  # fmt: skip


def _plain(value: Any) -> bool:
    try:
        pack(value)
    except TypeError:
        return False
    return True


def _out(value: Any) -> Any:
    if isinstance(value, Tensor):
        data = safetensors.torch.save({"it": value.detach().cpu().contiguous()})
        return {"@tensor": base64.b64encode(data).decode()}
    if isinstance(value, dict):
        return {str(key): _out(entry) for key, entry in value.items()}
    return [_out(entry) for entry in value] if isinstance(value, list | tuple) else value


def _in(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"@tensor"}:
            return safetensors.torch.load(base64.b64decode(value["@tensor"]))["it"]
        return {key: _in(entry) for key, entry in value.items()}
    return [_in(entry) for entry in value] if isinstance(value, list) else value
