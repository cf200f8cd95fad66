"""Leases with fencing tokens: one holder at a time, and a late one cannot write.

M. Kleppmann, "How to do distributed locking" (2016): the token grows with each holder and every write
is checked against it, so a process that slept past its lease does no harm when it wakes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from registry.records import Lease
from registry.store import Transaction

# Not the moment itself: on a host whose clock is set back a lease would be held again that nobody holds.
GIVEN_BACK_AT = datetime(1970, 1, 1, tzinfo=UTC)


def acquire(tx: Transaction, *, resource: str, holder: str, seconds: float) -> Lease | None:
    """Take the lease, or None while another holder's has not expired."""
    held = tx.seek(Lease, resource, for_update=True)
    if held is not None and not held.is_expired(now=tx.now):
        return None
    lease = Lease(
        id=resource,
        holder=holder,
        token=1 if held is None else held.token + 1,
        acquired_at=tx.now,
        renewed_at=tx.now,
        expires_at=tx.now + timedelta(seconds=seconds),
    )
    if held is None:
        tx.insert(lease)
        return lease
    return tx.update(held, **lease.model_dump(exclude={"id"}))


def renew(tx: Transaction, lease: Lease, *, seconds: float) -> Lease:
    """Push the expiry on; `StaleWrite` where it expired or another holds it."""
    tx.check_lease(lease)
    return tx.update(lease, renewed_at=tx.now, expires_at=tx.now + timedelta(seconds=seconds))


def release(tx: Transaction, lease: Lease) -> None:
    """Give the lease back; nothing happens where it is another's by now."""
    held = tx.seek(Lease, lease.id)
    if held is not None and held.token == lease.token:
        tx.update(held, expires_at=GIVEN_BACK_AT)


def is_held(tx: Transaction, *, resource: str) -> bool:
    """True while a holder's lease has not expired."""
    return holding(tx, resource=resource) is not None


def holding(tx: Transaction, *, resource: str) -> Lease | None:
    """The lease that has not expired."""
    held = tx.seek(Lease, resource)
    return None if held is None or held.is_expired(now=tx.now) else held
