"""Real input for the demo: reasoning-gym's `spell_backward` as chat rows, with a held-out suite.

A word of the suite never stands in the training data, in whatever case it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import reasoning_gym

from tasks.demo.plan import LEVELS, TrainingFile

NUM_SUITE_ROWS = 50
SUITE_SEED = 20_000_000
TRAIN_SEED = 1


def write_suite(path: Path) -> set[str]:
    """Write 50 rows a level, each word once; the words that stand in it, in lower case."""
    held_out: set[str] = set()
    rows: list[dict[str, object]] = []
    for level in LEVELS:
        words = _words(level.min_letters, level.max_letters, seed=SUITE_SEED)
        chosen = [next(words) for _ in range(NUM_SUITE_ROWS * 3)]
        fresh = _distinct(chosen, known=held_out)[:NUM_SUITE_ROWS]
        for number, (question, answer, word) in enumerate(fresh):
            held_out.add(word.lower())
            rows.append(
                {"id": f"{level.name}-{number:02d}", "difficulty": level.name, **_chat(question, answer)}
            )
    _write_rows(path, rows=rows)
    return held_out


def write_training_file(path: Path, *, file: TrainingFile, held_out: set[str]) -> None:
    """Write the rows of one training file, none of whose words is held out."""
    words = _words(LEVELS[0].min_letters, file.max_letters, seed=TRAIN_SEED + file.max_letters)
    rows: list[dict[str, object]] = []
    while len(rows) < file.num_rows:
        question, answer, word = next(words)
        if word.lower() not in held_out:
            rows.append(_chat(question, answer))
    _write_rows(path, rows=rows)


def instruction() -> str:
    """The text that stands before the word in every question."""
    question, _, word = next(_words(LEVELS[0].min_letters, LEVELS[0].max_letters, seed=TRAIN_SEED))
    return question.removesuffix(word)


def _words(min_letters: int, max_letters: int, *, seed: int) -> Iterator[tuple[str, str, str]]:
    data = reasoning_gym.create_dataset(
        "spell_backward", seed=seed, size=1_000_000, min_word_len=min_letters, max_word_len=max_letters
    )
    for index in range(len(data)):
        item = data[index]
        yield item["question"], item["answer"], item["metadata"]["word"]


def _distinct(rows: list[tuple[str, str, str]], *, known: set[str]) -> list[tuple[str, str, str]]:
    seen = set(known)
    distinct = []
    for row in rows:
        if row[2].lower() not in seen:
            seen.add(row[2].lower())
            distinct.append(row)
    return distinct


def _chat(question: str, answer: str) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def _write_rows(path: Path, *, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
