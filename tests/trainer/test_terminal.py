"""What a person at a terminal reads."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trainer.messages import (
    CheckpointSaved,
    ChildMessage,
    Failed,
    Finished,
    Progress,
    Started,
    TrainingResult,
    Warned,
)
from trainer.terminal import TerminalReporter, sentence

PROGRESS = Progress(
    step=2,
    num_steps=9,
    epoch=0.2,
    loss=1.23456,
    learning_rate=1e-5,
    grad_norm=1.0,
    tokens_per_second=1234.5,
    num_tokens=3,
    num_unused_rows=1,
    peak_memory_bytes=1,
)
RESULT = TrainingResult(
    state="stopped",
    num_steps=9,
    step=2,
    epoch=0.5,
    num_tokens=9,
    num_unused_rows=0,
    final_checkpoint=None,
    mean_loss=0.5,
    duration_seconds=1.0,
)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            Started(
                num_rows=5,
                num_sequences=5,
                num_dropped_rows=2,
                num_steps=9,
                resumed_from_step=4,
                device="cpu",
            ),
            "5 rows, 2 too long and left out; 9 steps on cpu, going on after step 4.",
        ),
        (PROGRESS, "Step 2 of 9: loss 1.2346, 1,234 tokens/s"),
        (CheckpointSaved(path="/c", step=3, is_final=True, weights_sha256="a"), "Checkpoint of step 3: /c"),
        (Warned(message="careful"), "Warning: careful"),
        (Failed(kind="data", message="No rows.", remedy="Add some."), "Failed (data): No rows. Add some."),
        (Finished(result=RESULT), "Stopped after step 2 of 9 in 1.0 s, mean loss 0.5000. Nothing was saved."),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
def test_every_message_is_a_sentence(message: ChildMessage, text: str) -> None:
    assert sentence(message) == text


def test_a_run_is_shown_with_a_bar_and_sentences() -> None:
    stream = io.StringIO()
    with TerminalReporter(Console(file=stream, force_terminal=True, width=120)) as show:
        show(Started(num_rows=5, num_sequences=5, num_steps=9, device="cpu"))
        show(PROGRESS)
        show(Warned(message="a [bold] word"))
    text = stream.getvalue()
    assert "Training" in text
    assert "2/9" in text
    assert "a [bold] word" in text
