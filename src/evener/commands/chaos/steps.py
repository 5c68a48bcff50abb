"""How many steps each task has made, read from a ledger while it is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from evener.ledger.lines import Update, parse


class Steps:
    """Of one ledger, from its first line on: gradients that were used of each worker, updates of each ps task.

    Args:
        ps: ps tasks, which all make every update.
    """

    def __init__(self, ledger: Path, ps: int) -> None:
        self._ledger, self._ps = ledger, ps
        self._read, self._rest = 0, b""
        self.counts: Counter[str] = Counter()

    def look(self) -> Counter[str]:
        """Read what came since the last look."""
        try:
            with self._ledger.open("rb") as file:
                file.seek(self._read)
                news = file.read()
        except OSError:  # it is not there yet
            return self.counts
        self._read += len(news)
        *lines, self._rest = (self._rest + news).split(b"\n")
        for line in lines:
            self._take(line)
        return self.counts

    def _take(self, text: bytes) -> None:
        if isinstance(line := parse(text), Update):
            self.counts.update(f"ps:{index}" for index in range(self._ps))
            # A gradient of several batches has several entries.
            pushes = {(worker, epoch, seq) for _, worker, epoch, seq in line.entries}
            self.counts.update(f"worker:{worker}" for worker, _, _ in pushes)
