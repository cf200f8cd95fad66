"""Messages as whole lines on a descriptor."""

from __future__ import annotations

import os

import pytest

from trainer.errors import Orphaned
from trainer.messages import Warned, parse_line
from trainer.wire import LineWriter


def test_a_message_is_one_whole_line() -> None:
    reader, writer = os.pipe()
    LineWriter(writer)(Warned(message="a"))
    LineWriter(writer)(Warned(message="b"))
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert [parse_line(line) for line in stream] == [Warned(message="a"), Warned(message="b")]


def test_what_is_written_in_pieces_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write_a_little(_: int, content: bytes) -> int:
        written.append(content[:7])
        return len(content[:7])

    monkeypatch.setattr(os, "write", write_a_little)
    LineWriter(1)(Warned(message="a sentence"))
    assert parse_line(b"".join(written)) == Warned(message="a sentence")


def test_nobody_listening_is_an_orphans_lot() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(Orphaned):
            LineWriter(writer)(Warned(message="a"))
    finally:
        os.close(writer)
