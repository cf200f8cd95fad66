from __future__ import annotations

import copy
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.answering import generate
from inference.evaluate import UNUSABLE_WEIGHTS, evaluate, evaluate_rows
from inference.model import LoadedModel
from inference.prompts import encode_prompt
from inference.testing import seal
from registry.files import sha256_file
from registry.messages import ArtifactReference, EvaluationAnswer, EvaluationRequest
from registry.records import TEMPERATURES, ExampleResult, GenerationSettings
from registry.rows import ChatMessage, ChatRow

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROWS: list[dict[str, object]] = [
    {"prompt": f"Say {'x' * place}", "completion": "x" * (place + 1), "difficulty": "easy", "tags": ["say"]}
    for place in range(5)
]
SETTINGS = GenerationSettings(max_new_tokens=12)


def write_suite(path: Path, *, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request_for(model: Path, *, suite: Path) -> EvaluationRequest:
    weights = model / "model.safetensors"
    return EvaluationRequest(
        evaluation_id="eval-1",
        checkpoint_id="ckpt-1",
        model=ArtifactReference(path=str(model), sha256=sha256_file(weights) if weights.exists() else ""),
        suite_id="suite-1",
        suite=ArtifactReference(path=str(suite), sha256=sha256_file(suite)),
        settings=GenerationSettings(max_new_tokens=4),
        device="cpu",
    )


def answer_to(request: EvaluationRequest) -> EvaluationAnswer:
    ticks = count()
    return evaluate(request, host="here", clock=lambda: NOON + timedelta(seconds=next(ticks)))


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "suite.jsonl", rows=ROWS)


@pytest.fixture
def model(tiny_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_directory, tmp_path / "model")


def row(prompt: str, expected: str) -> ChatRow:
    turns = (ChatMessage(role="user", content=prompt), ChatMessage(role="assistant", content=expected))
    return ChatRow(messages=turns)


def evaluated(loaded: LoadedModel, one: ChatRow, *, settings: GenerationSettings = SETTINGS) -> ExampleResult:
    return evaluate_rows(loaded, [one], settings=settings)[0]


def test_every_row_has_a_result_in_order(tiny_directory: Path, suite: Path) -> None:
    answer = answer_to(request_for(tiny_directory, suite=suite))
    assert (answer.problem, answer.host) == ("", "here")
    assert (answer.evaluation_id, answer.checkpoint_id, answer.suite_id) == ("eval-1", "ckpt-1", "suite-1")
    assert answer.finished_at - answer.started_at == timedelta(seconds=1)
    assert [example.expected for example in answer.examples] == [known["completion"] for known in ROWS]
    for example in answer.examples:
        assert (example.difficulty, example.tags, example.problem) == ("easy", ("say",), "")
        assert example.loss is not None
        assert example.loss > 0
        assert example.num_answer_tokens == len(example.expected) + 1


def test_the_same_request_has_the_same_answer(tiny_directory: Path, suite: Path) -> None:
    request = request_for(tiny_directory, suite=suite)
    assert answer_to(request) == answer_to(request)


def finished_reply(loaded: LoadedModel) -> tuple[str, str]:
    """A prompt with the reply that the model ends by itself, some characters long."""
    for place in range(200):
        prompt = f"Say {place}"
        turn = encode_prompt(loaded, [ChatMessage(role="user", content=prompt)])
        reply = generate(loaded, [turn], settings=SETTINGS)[0]
        if reply.finish_reason == "stop" and len(reply.text.strip()) > 2:
            return prompt, reply.text
    raise AssertionError("no prompt has a finished reply")


def test_an_answer_is_as_likely_at_a_temperature_as_from_logits_divided_by_it(talker: LoadedModel) -> None:
    twice = copy.deepcopy(talker.model)
    twice.lm_head.weight = torch.nn.Parameter(2 * twice.lm_head.weight, requires_grad=False)
    rows = [row(f"Say {'x' * place}", "x") for place in range(4)]
    plain = evaluate_rows(talker, rows, settings=SETTINGS)
    sharp = evaluate_rows(replace(talker, model=twice), rows, settings=SETTINGS)
    octave = 2  # half octaves
    for one, other in zip(plain, sharp, strict=True):
        assert one.answer == other.answer
        assert one.confidence == pytest.approx(
            math.exp(one.tempered_logprobs[TEMPERATURES.index(1.0)]), rel=1e-4
        )
        assert other.tempered_logprobs[octave:] == pytest.approx(one.tempered_logprobs[:-octave], rel=1e-3)


def test_the_expected_text_is_correct_whatever_white_space_surrounds_it(talker: LoadedModel) -> None:
    prompt, reply = finished_reply(talker)
    assert evaluated(talker, row(prompt, f" {reply.strip()}\n")).is_correct
    assert not evaluated(talker, row(prompt, reply + "x")).is_correct


def test_a_reply_that_was_cut_off_is_wrong_even_where_it_matches_so_far(talker: LoadedModel) -> None:
    prompt, reply = finished_reply(talker)
    cut = evaluated(talker, row(prompt, reply[:2]), settings=GenerationSettings(max_new_tokens=2))
    assert cut.answer == reply[:2]
    assert cut.finish_reason == "length"
    assert not cut.is_correct


def test_weights_that_are_not_finite_make_every_example_unknown(model: Path, suite: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    answer = answer_to(request_for(seal(model), suite=suite))
    assert len(answer.examples) == len(ROWS)
    for example in answer.examples:
        assert (example.loss, example.confidence, example.is_correct) == (None, None, False)
        assert example.problem == UNUSABLE_WEIGHTS


def test_a_row_that_does_not_fit_is_unknown_and_spares_the_others(tiny: LoadedModel) -> None:
    short = replace(tiny, max_positions=80)
    fits, too_long = evaluate_rows(short, [row("hi", "yes"), row("x" * 90, "yes")], settings=SETTINGS)
    assert fits.loss is not None
    assert (too_long.loss, too_long.is_correct, too_long.finish_reason) == (None, False, "error")
    assert "the model reads 80" in too_long.problem


def test_a_row_whose_answer_alone_does_not_fit_is_unknown(tiny: LoadedModel) -> None:
    short = replace(tiny, max_positions=64)
    example = evaluated(short, row("hi", "y" * 60))
    assert (example.loss, example.is_correct) == (None, False)
    assert example.finish_reason == "length"
    assert "the model reads 64" in example.problem


def _no_tokenizer(model: Path, _suite: Path) -> None:
    (model / "tokenizer.json").unlink()
    seal(model)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda model, suite: (model / "manifest.json").unlink(), "ManifestError: .* no manifest.json"),
        (lambda model, suite: shutil.rmtree(model), "ModelError: .* not a model directory"),
        (_no_tokenizer, "ModelError: .* has no tokenizer"),
        (lambda model, suite: (model / "manifest.json").write_text("{}"), "ManifestError: .* cannot be read"),
        (lambda model, suite: suite.unlink(), "DatasetError: The suite .* cannot be read: No such file"),
        (lambda model, suite: suite.write_text("{}"), "DatasetError: The suite .* as asked. Copy the suite"),
    ],
)
def test_what_cannot_be_evaluated_is_a_problem_without_examples(
    model: Path, suite: Path, damage: Callable[[Path, Path], object], problem: str
) -> None:
    request = request_for(model, suite=suite)
    damage(model, suite)
    answer = answer_to(request)
    assert answer.examples == ()
    assert re.search(problem, answer.problem)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "has no rows"),
        ([ROWS[0], {"prompt": "Say", "completion": " "}], "line 2: .*is empty"),
        ([ROWS[0], ROWS[1], ROWS[0]], "has 2 rows with id"),
    ],
)
def test_a_suite_that_proves_nothing_is_a_problem(
    tiny_directory: Path, tmp_path: Path, rows: list[dict[str, object]], problem: str
) -> None:
    suite = write_suite(tmp_path / "bad.jsonl", rows=rows)
    answer = answer_to(request_for(tiny_directory, suite=suite))
    assert answer.examples == ()
    assert re.search(problem, answer.problem)


def test_other_weights_than_the_request_names_are_a_problem(tiny_directory: Path, suite: Path) -> None:
    request = request_for(tiny_directory, suite=suite)
    other = request.changed(model=ArtifactReference(path=str(tiny_directory), sha256="0" * 64))
    answer = answer_to(other)
    assert answer.examples == ()
    assert "not 000000000000 as asked" in answer.problem
