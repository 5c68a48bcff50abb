"""`evener audit`: a logdir's ledger and manifests, read from the disk and judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from evener.audit import Account, SavedBook, audit
from evener.audit.account import Violation
from evener.errors import CheckpointError
from evener.ledger import path_of
from evener.ledger.reading import beginnings, read
from evener.state.checkpoint import Store, read_manifest


def account(logdir: Path) -> Account:
    """Judge the training of one logdir; of a run that still trains, what was written so far.

    Raises:
        CheckpointError: there is no ledger.
        VersionError: a newer evener wrote it.
    """
    path = path_of(logdir)
    unread: list[Violation] = []
    starts = list(beginnings(path))
    saved = list(_saved(logdir / "checkpoints", unread))
    found = audit(starts, read(path), saved)
    return replace(found, remarks=(*found.remarks, *unread))


def _saved(directory: Path, unread: list[Violation]) -> Iterator[SavedBook]:
    store = Store(directory, writable=False)
    for step in store.steps():
        try:
            manifest = read_manifest(store.path(step))
        except CheckpointError as error:
            unread.append(Violation(0, error.what))
            continue
        seqs = {int(worker): life for worker, life in manifest.seqs.items()}
        unapplied = manifest.unapplied_samples if manifest.by_samples else manifest.unapplied
        yield SavedBook(manifest.step, manifest.next_lease, unapplied, seqs)
