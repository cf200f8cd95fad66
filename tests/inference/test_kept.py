"""A question that was asked before, to its end or until a kill, is not asked again."""

from __future__ import annotations

import itertools
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from inference import evaluate as evaluation
from inference.errors import EvaluationStopped
from inference.evaluate import evaluate
from inference.kept import MAX_QUESTIONS, KeptAnswers
from inference.testing import build_sealed_tiny_model, seal
from registry.files import sha256_file
from registry.judging import Judgement
from registry.messages import ArtifactReference, EvaluationAnswer, EvaluationRequest
from registry.records import GenerationSettings
from registry.rows import ChatRow

pytestmark = pytest.mark.model
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NUM_ROWS = 12


class Killed(Exception):
    """Stands for the process that ends in the middle."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sealed_tiny_model(tmp_path_factory.mktemp("kept") / "model")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.jsonl"
    rows = [{"prompt": f"Say {'x' * n}", "completion": "x" * (n + 1)} for n in range(NUM_ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK_ROWS", 4)


def ask(model: Path, suite: Path, keep_in: Path | None, **changes: Any) -> EvaluationAnswer:
    how: dict[str, Any] = {"settings": GenerationSettings(max_new_tokens=4)} | {
        key: value for key, value in changes.items() if key == "settings"
    }
    request = EvaluationRequest(
        evaluation_id="eval-1",
        checkpoint_id="ckpt-1",
        model=ArtifactReference(path=str(model), sha256=sha256_file(model / "model.safetensors")),
        suite_id="suite-1",
        suite=ArtifactReference(path=str(suite), sha256=sha256_file(suite)),
        device="cpu",
        **how,
    )
    options = {name: changes[name] for name in ("judge", "should_stop") if name in changes}
    return evaluate(request, host="here", clock=lambda: NOON, keep_in=keep_in, **options)


@pytest.fixture
def num_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that were put to the model, pass by pass."""
    asked: list[int] = []
    real = evaluation.answers

    def count(loaded: Any, rows: Any, **how: Any) -> Any:
        asked.append(len(rows))
        return real(loaded, rows, **how)

    monkeypatch.setattr(evaluation, "answers", count)
    return asked


def test_the_same_question_is_answered_from_what_was_kept_to_the_bit(
    model: Path, suite: Path, tmp_path: Path, num_asked: list[int]
) -> None:
    first = ask(model, suite, tmp_path / "kept")
    assert (first.problem, first.num_kept, num_asked) == ("", 0, [NUM_ROWS])
    second = ask(model, suite, tmp_path / "kept")
    assert second.num_kept == NUM_ROWS
    assert num_asked == [NUM_ROWS, 0]
    assert second.examples == first.examples
    assert_alike(first, ask(model, suite, None))


def assert_alike(one: EvaluationAnswer, other: EvaluationAnswer) -> None:
    """The same answers; losses within what other neighbours in a batch change in the last bits."""
    for left, right in zip(one.examples, other.examples, strict=True):
        assert (left.row_id, left.answer, left.is_correct) == (right.row_id, right.answer, right.is_correct)
        assert left.loss == pytest.approx(right.loss, rel=1e-5)


def test_a_killed_evaluation_goes_on_where_it_was(
    model: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_asked: list[int]
) -> None:
    counting = evaluation.answers

    def die_at_the_tenth(loaded: Any, rows: Any, **how: Any) -> Any:
        yield from itertools.islice(counting(loaded, rows, **how), 9)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "answers", die_at_the_tenth)
        with pytest.raises(Killed):
            ask(model, suite, tmp_path / "kept")
    again = ask(model, suite, tmp_path / "kept")
    assert (again.num_kept, num_asked) == (8, [NUM_ROWS, NUM_ROWS - 8])
    assert_alike(again, ask(model, suite, None))


def test_an_evaluation_that_is_told_to_stop_keeps_every_row_that_it_has(
    model: Path, suite: Path, tmp_path: Path, num_asked: list[int]
) -> None:
    answers = iter([False] * 7)  # one before the model is loaded, then one a row

    def told() -> bool:
        return next(answers, True)

    with pytest.raises(EvaluationStopped, match=f"7 of {NUM_ROWS} rows answered"):
        ask(model, suite, tmp_path / "kept", should_stop=told)
    again = ask(model, suite, tmp_path / "kept")
    assert (again.problem, again.num_kept, num_asked) == ("", 7, [NUM_ROWS, NUM_ROWS - 7])
    assert_alike(again, ask(model, suite, None))


def test_an_evaluation_that_is_told_to_stop_at_once_loads_no_model(
    model: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(evaluation, "load_model", load)
    with pytest.raises(EvaluationStopped, match=f"0 of {NUM_ROWS} rows answered"):
        ask(model, suite, None, should_stop=lambda: True)


def test_a_line_that_a_kill_cut_off_is_asked_again_and_hurts_no_other(
    model: Path, suite: Path, tmp_path: Path
) -> None:
    whole = ask(model, suite, tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    cut = ask(model, suite, tmp_path / "kept")
    assert cut.num_kept == NUM_ROWS - 1
    assert_alike(cut, whole)
    assert ask(model, suite, tmp_path / "kept").num_kept == NUM_ROWS


def test_another_question_finds_nothing(model: Path, suite: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    ask(model, suite, kept)
    assert ask(model, suite, kept, settings=GenerationSettings(max_new_tokens=5)).num_kept == 0
    other = shutil.copytree(model, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"note": "another"}))
    (other / "manifest.json").unlink()
    # The same weights with another tokenizer are another model.
    assert ask(seal(other), suite, kept).num_kept == 0


def test_a_scorer_that_was_mended_judges_what_was_kept_anew(model: Path, suite: Path, tmp_path: Path) -> None:
    def broken(row: ChatRow, answer: str) -> Judgement:
        return Judgement(is_correct=False, problem="the scorer is broken")

    def mended(row: ChatRow, answer: str) -> Judgement:
        return Judgement(is_correct=True)

    settings = GenerationSettings(max_new_tokens=64)
    first = ask(model, suite, tmp_path / "kept", judge=broken, settings=settings)
    second = ask(model, suite, tmp_path / "kept", judge=mended, settings=settings)
    assert second.num_kept == NUM_ROWS
    ended = [example.finish_reason == "stop" for example in first.examples]
    assert [bool(example.problem) for example in first.examples] == ended
    assert [example.is_correct for example in second.examples] == ended


def test_a_disk_that_takes_nothing_costs_the_keeping_only(model: Path, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where a directory should be")
    answer = ask(model, suite, tmp_path / "kept")
    assert (answer.problem, len(answer.examples)) == ("", NUM_ROWS)


def test_old_questions_make_room(tmp_path: Path) -> None:
    for number in range(MAX_QUESTIONS + 3):
        kept = KeptAnswers(tmp_path, key=f"{number:03}")
        kept.add({})
    kept.forget_older()
    assert len(list(tmp_path.iterdir())) == MAX_QUESTIONS
    assert (tmp_path / f"{MAX_QUESTIONS + 2:03}.jsonl").exists()
