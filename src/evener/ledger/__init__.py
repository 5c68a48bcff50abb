"""The account of every batch in `LOGDIR/ledger.jsonl`: its owner writes, `evener.audit` judges."""

from __future__ import annotations

from evener.ledger.lines import LOADER, SEVERAL, Begin
from evener.ledger.reading import granted, lost, path_of
from evener.ledger.writing import Ledger

__all__ = ["LOADER", "SEVERAL", "Begin", "Ledger", "granted", "lost", "path_of"]
