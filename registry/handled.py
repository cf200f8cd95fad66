"""Messages whose work is done: the broker may deliver one again, hours later, and it must not count twice.

What a message asks for is mostly harmless to do again. A person's command is not: a pause that comes again
after the person resumed, or a retry with three more attempts. It is noted in the transaction that obeys it.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete

from registry.files import sha256_text
from registry.records import HandledMessage
from registry.store import Transaction
from registry.tables import handled_messages

KEPT_DAYS = 7  # a message comes again within the visibility timeout, or when Redis is back


def note(tx: Transaction, *, message_id: str | None) -> bool:
    """Note that this message is obeyed in this transaction; False where it was before.

    Without an id, as in a call inside one process, nothing can come twice.
    """
    if message_id is None:
        return True
    if was_noted(tx, message_id=message_id):
        return False
    tx.insert(HandledMessage(id=sha256_text(message_id), handled_at=tx.now))
    return True


def was_noted(tx: Transaction, *, message_id: str | None) -> bool:
    """True where this very message was obeyed."""
    return message_id is not None and tx.seek(HandledMessage, sha256_text(message_id)) is not None


def forget_old(tx: Transaction) -> None:
    """Remove the notes about messages that can no longer come."""
    before = tx.now - timedelta(days=KEPT_DAYS)
    tx.connection.execute(delete(handled_messages).where(handled_messages.c.handled_at < before))
