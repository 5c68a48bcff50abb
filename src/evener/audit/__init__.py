"""Judge a ledger: pure, so that a test can tell any story."""

from __future__ import annotations

from evener.audit.account import Account
from evener.audit.judge import audit
from evener.audit.lineage import SavedBook

__all__ = ["Account", "SavedBook", "audit"]
