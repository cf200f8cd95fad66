"""The harness drives our model and its own backend: the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from inference.errors import ModelError
from inference.harness import run_tasks
from inference.lm_eval_model import TandemLM
from inference.model import LoadedModel, load_model
from inference.testing import build_sealed_tiny_model, make_talkative

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]
QUESTIONS = [
    {"question": f"Spell {word}", "choices": [word[::-1], word, word.upper()], "answer": 0}
    for word in ("sun", "stone", "river", "a", "mountain", "leaf", "cold wind", "tree")
]
CHOICE = """task: spelling
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}} Answer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = build_sealed_tiny_model(tmp_path_factory.mktemp("lm") / "model")
    return make_talkative(load_model(directory, device="cpu", num_threads=1))


@pytest.fixture(scope="module")
def ours(loaded: LoadedModel) -> TandemLM:
    return TandemLM(loaded=loaded)


@pytest.fixture(scope="module")
def theirs(loaded: LoadedModel) -> HFLM:
    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4, device="cpu")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "spelling.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    directory = tmp_path / "tasks"
    directory.mkdir()
    (directory / "spelling.yaml").write_text(CHOICE.replace("DATA", str(data)))
    return directory


def asked(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=n) for n, one in enumerate(arguments)]


def test_log_likelihoods_and_greedy_flags_are_those_of_the_harness_backend(
    ours: TandemLM, theirs: HFLM
) -> None:
    pairs = [
        (f"Question: {row['question']} Answer:", f" {choice}")
        for row in QUESTIONS
        for choice in row["choices"]
    ]
    greedy = theirs.generate_until(asked("generate_until", ("Question:", {"until": [], "max_gen_toks": 3})))
    pairs += [("", "alone"), ("ends in spaces  ", "then"), ("Question:", greedy[0] or "x")]
    mine = ours.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    other = theirs.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    assert [one[0] for one in mine] == pytest.approx([one[0] for one in other], abs=1e-4)
    assert [one[1] for one in mine] == [bool(one[1]) for one in other]
    assert any(one[1] for one in mine)


def test_whole_texts_are_as_likely(ours: TandemLM, theirs: HFLM) -> None:
    texts = [("One two three.",), ("a",), ("The river runs to the sea. " * 8,)]
    mine = ours.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
    other = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
    assert mine == pytest.approx(other, rel=1e-5)


def test_greedy_answers_are_the_same_to_their_stop_strings(ours: TandemLM, theirs: HFLM) -> None:
    settings = {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False}
    prompts = [(f"Question: {row['question']}", settings) for row in QUESTIONS]
    mine = ours.generate_until(asked("generate_until", *prompts), disable_tqdm=True)
    other = theirs.generate_until(asked("generate_until", *prompts), disable_tqdm=True)
    assert mine == other


def test_a_task_of_the_harness_runs_from_its_files(ours: TandemLM, tasks: Path) -> None:
    found = {one.metric: one for one in run_tasks(ours, tasks=["spelling"], include_dir=tasks)}
    assert set(found) == {"acc", "acc_norm"}
    assert found["acc"].num_samples == len(QUESTIONS)
    assert 0 <= found["acc"].value <= 1
    assert found["acc"].standard_error is not None


def test_an_unknown_task_is_named_beside_those_there_are(ours: TandemLM, tasks: Path) -> None:
    with pytest.raises(ModelError, match="no task 'speling'.*There are: spelling"):
        run_tasks(ours, tasks=["speling"], include_dir=tasks)


def test_the_harness_own_command_runs_our_model_from_local_files(tasks: Path, tmp_path: Path) -> None:
    model = build_sealed_tiny_model(tmp_path / "model")
    command = [sys.executable, "-m", "inference.lm_eval_command", "run", "--model", "tandem"]
    how = ["--model_args", f"pretrained={model},num_threads=1", "--device", "cpu", "--batch_size", "4"]
    what = ["--include_path", str(tasks), "--tasks", "spelling", "--output_path", str(tmp_path / "out")]
    ran = subprocess.run([*command, *how, *what], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(path.read_text())["results"]["spelling"]["acc,none"]
    lm = TandemLM(model, device="cpu", num_threads=1)
    (ours,) = [one for one in run_tasks(lm, tasks=["spelling"], include_dir=tasks) if one.metric == "acc"]
    assert told == pytest.approx(ours.value)
