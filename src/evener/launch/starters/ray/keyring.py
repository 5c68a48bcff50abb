"""The keys of one actor: its own pair, made on its node, and the public halves of the others."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from evener.cluster.private import private_directory
from evener.transport import keys


class Keyring:
    """A directory of keys that goes away with its actor; the secret in it has mode 0600 and leaves it never.

    Args:
        task: "ps-0".
    """

    def __init__(self, task: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"ray-{task}-", dir=private_directory()))
        keys.new(self.directory, [task])
        self.certificate = (self.directory / (task + keys.PUBLIC)).read_text()
        self._task = task

    def trust(self, certificates: Mapping[str, str]) -> None:
        """Know the others by these. Each file is there whole or not at all: a link may be opened meanwhile."""
        for name, certificate in certificates.items():
            if keys.named(name) != self._task:
                draft = self.directory / f".{name}"
                draft.write_text(certificate)
                os.replace(draft, self.directory / (name + keys.PUBLIC))

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
