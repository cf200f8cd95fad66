"""What the trainer says: one strict JSON object a line."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from trainer.messages import (
    CheckpointSaved,
    ChildMessage,
    Failed,
    Finished,
    Progress,
    Started,
    TrainingResult,
    Warned,
    format_line,
    parse_line,
)

RESULT = TrainingResult(
    state="finished",
    num_steps=3,
    step=3,
    epoch=1.0,
    num_tokens=9,
    num_unused_rows=0,
    final_checkpoint="/c",
    mean_loss=0.5,
    duration_seconds=1.0,
)
PROGRESS = Progress(
    step=1,
    num_steps=3,
    epoch=0.3,
    loss=0.5,
    learning_rate=1e-5,
    grad_norm=1.0,
    num_tokens=3,
    num_unused_rows=1,
    peak_memory_bytes=1,
)
MESSAGES: tuple[ChildMessage, ...] = (
    Started(num_rows=1, num_sequences=1, num_steps=3, device="cpu"),
    PROGRESS,
    CheckpointSaved(path="/c", step=3, is_final=True, weights_sha256="a"),
    Warned(message="a line\nbreak"),
    Finished(result=RESULT),
    Failed(kind="data", message="no rows"),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_a_message_survives_the_wire_as_one_line(message: ChildMessage) -> None:
    line = format_line(message)
    assert line.count(b"\n") == 1
    assert json.loads(line)["type"] == message.type
    assert parse_line(line) == message
    assert parse_line(line.decode()) == message


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"type": "other"}', b'{"step": 1}', b'{"type": "warned"}']
)
def test_another_line_is_no_message(line: bytes) -> None:
    with pytest.raises(ValidationError):
        parse_line(line)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_cannot_be_said(value: float) -> None:
    with pytest.raises(ValidationError):
        PROGRESS.changed(loss=value)
