"""The book of a run's batches, in its unit: where it begins, and where it ends."""

from __future__ import annotations

from evener.policy.leases import Leases
from evener.policy.stretches import Stretches
from evener.settings import Settings
from evener.state.checkpoint import Manifest


def book_of(manifest: Manifest | None, settings: Settings) -> Leases | Stretches:
    """Of batches with numbers, or of samples, as the checkpoint says from which the run goes on."""
    if settings.by_samples:
        book = manifest.stretches if manifest else Stretches().state()
        return Stretches(next_sample=book.next_lease, returned=book.unapplied, skipped=book.skipped)
    if manifest is None:
        return Leases()
    return Leases(next_lease=manifest.next_lease, returned=manifest.unapplied, skipped=manifest.skipped)


def set_limit(leases: Leases, settings: Settings, samples: int, updates: int) -> None:
    """How many batches there are, once it is known how much data there is.

    Args:
        updates: that are left.
    """
    if settings.script:
        leases.fence(samples)
    elif settings.ends_by_samples:
        whole = settings.epochs_in_gradients(samples) * settings.batches
        leases.limit = max(leases.next_lease, whole + len(leases.state().skipped))
    elif settings.terms.exact:
        # Every update uses as many leases: exactly those that are left.
        unapplied = len(leases.state().unapplied)
        leases.limit = leases.next_lease - unapplied + max(0, updates) * settings.batches_of_update
