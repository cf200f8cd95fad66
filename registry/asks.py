"""What was asked of other hosts, and when: a question is put once, and again only if no answer came."""

from __future__ import annotations

from datetime import datetime, timedelta

from registry.records import Ask
from registry.store import Transaction


def is_due(tx: Transaction, *, kind: str, subject_id: str, retry_after_seconds: float) -> bool:
    """True where it was never asked, or asked so long ago that the question or the answer was lost."""
    ask = tx.seek(Ask, ask_id(kind, subject_id=subject_id))
    if ask is None:
        return True
    return not ask.is_settled and tx.now - ask.asked_at >= timedelta(seconds=retry_after_seconds)


def put(tx: Transaction, *, kind: str, subject_id: str) -> Ask:
    """Note that it is being asked at this moment."""
    ask = tx.seek(Ask, ask_id(kind, subject_id=subject_id))
    if ask is not None:
        return tx.update(ask, num_asked=ask.num_asked + 1, asked_at=tx.now, is_settled=False)
    ask = Ask(
        id=ask_id(kind, subject_id=subject_id), kind=kind, subject_id=subject_id, num_asked=1, asked_at=tx.now
    )
    tx.insert(ask)
    return ask


def postpone(
    tx: Transaction, *, kind: str, subject_id: str, seconds: float, retry_after_seconds: float
) -> None:
    """Let it be asked again after so many seconds, as if it had not been asked this time."""
    ask = tx.seek(Ask, ask_id(kind, subject_id=subject_id))
    if ask is not None and not ask.is_settled:
        asked_at = tx.now - timedelta(seconds=retry_after_seconds - seconds)
        tx.update(ask, num_asked=max(1, ask.num_asked) - 1, asked_at=asked_at)


def renew(tx: Transaction, *, kind: str, subject_id: str) -> None:
    """Note that someone is at it at this moment: it is neither lost nor asked once more."""
    ask = tx.seek(Ask, ask_id(kind, subject_id=subject_id))
    if ask is not None and not ask.is_settled:
        tx.update(ask, asked_at=tx.now)


def settle(tx: Transaction, *, kind: str, subject_id: str) -> None:
    """Note that the answer is recorded."""
    ask = tx.seek(Ask, ask_id(kind, subject_id=subject_id))
    if ask is not None and not ask.is_settled:
        tx.update(ask, is_settled=True)


def forget(tx: Transaction, *, kind: str, subject_id: str) -> None:
    """Count anew from here on."""
    ask = tx.seek(Ask, ask_id(kind, subject_id=subject_id))
    if ask is not None:
        tx.update(ask, num_asked=0)


def last_put(tx: Transaction, *, kind: str, subject_id: str) -> datetime | None:
    """When it was last noted, or None."""
    ask = tx.seek(Ask, ask_id(kind, subject_id=subject_id))
    return None if ask is None else ask.asked_at


def num_asked(tx: Transaction, *, kind: str, subject_id: str) -> int:
    """How often it was asked so far."""
    ask = tx.seek(Ask, ask_id(kind, subject_id=subject_id))
    return 0 if ask is None else ask.num_asked


def num_under_way(tx: Transaction, *, kind: str, within_seconds: float) -> int:
    """How many were asked, or renewed, so lately, and are not answered. One that was postponed is older."""
    since = tx.now - timedelta(seconds=within_seconds)
    return sum(ask.asked_at > since for ask in tx.find(Ask, kind=kind, is_settled=False))


def ask_id(kind: str, *, subject_id: str) -> str:
    """Key of a question."""
    return f"{kind}:{subject_id}"
