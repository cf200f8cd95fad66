from registry import handled
from registry.records import HandledMessage
from registry.store import Registry
from registry.testing import ManualClock


def note(registry: Registry, message_id: str | None) -> bool:
    with registry.transaction() as tx:
        return handled.note(tx, message_id=message_id)


def test_a_message_is_new_once(registry: Registry) -> None:
    assert [note(registry, "m-1") for _ in range(5)] == [True, False, False, False, False]
    assert note(registry, "m-2")


def test_whatever_a_sender_calls_its_message_can_be_noted(registry: Registry) -> None:
    for name in ("", "long " * 1000, "zero \0 byte", "é"):
        assert note(registry, name)
        assert not note(registry, name)


def test_a_call_without_a_message_is_always_new_and_leaves_no_note(registry: Registry) -> None:
    assert note(registry, None)
    assert note(registry, None)
    with registry.reading() as tx:
        assert tx.find(HandledMessage) == []
        assert not handled.was_noted(tx, message_id=None)


def test_old_notes_are_removed(registry: Registry, clock: ManualClock) -> None:
    note(registry, "old")
    clock.advance(handled.KEPT_DAYS * 86400)
    note(registry, "young")
    clock.advance(1)
    with registry.transaction() as tx:
        handled.forget_old(tx)
        assert not handled.was_noted(tx, message_id="old")
        assert handled.was_noted(tx, message_id="young")
