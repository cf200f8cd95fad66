"""Asks the served model held-out questions through its OpenAI-compatible HTTP door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from registry.errors import TandemError
from registry.rows import ChatRow, read_rows
from workers.errors import TaskFailed

PICKS = {"easy": 2, "medium": 2, "hard": 1}


@dataclass(frozen=True)
class Reply:
    """One question with the answer that was expected and the one that came, by which release."""

    word: str
    expected: str
    answer: str
    release_id: str

    @property
    def is_right(self) -> bool:
        """Exact match."""
        return self.answer.strip() == self.expected


def pick_rows(suite: Path) -> list[ChatRow]:
    """Five held-out rows: two easy, two medium, one hard, from the end of each level."""
    rows = list(read_rows(suite))
    levels = {level: [row for row in rows if row.difficulty == level] for level in PICKS}
    return [row for level, count in PICKS.items() for row in levels[level][-count:]]


def ask(rows: Sequence[ChatRow], *, server_url: str, timeout_seconds: float = 30.0) -> list[Reply]:
    """Put each question to `/v1/chat/completions`; `TaskFailed` where the server does not answer."""
    try:
        with httpx.Client(base_url=server_url, timeout=timeout_seconds) as client:
            return [_ask_one(row, client=client) for row in rows]
    except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
        raise TaskFailed(f"The inference server at {server_url} did not answer: {error}") from error


def _ask_one(row: ChatRow, *, client: httpx.Client) -> Reply:
    messages = [message.model_dump() for message in row.prompt]
    body = {"model": "tandem", "messages": messages, "max_tokens": 32, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body)
    if answer.is_error:
        raise TandemError(f"The inference server answered {answer.status_code}: {answer.text[:300]}")
    return Reply(
        word=row.prompt[-1].content.rsplit(" ", 1)[-1],
        expected=row.expected,
        answer=answer.json()["choices"][0]["message"]["content"],
        release_id=answer.headers["X-Tandem-Release"],
    )
