"""Jobs that cannot be trained, at the door a user uses: refused with what, which value, and a remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import process
from trainer.config.job import JobConfig
from trainer.control import FlagControl
from trainer.core.engine import TrainerEngine
from trainer.errors import ConfigError
from trainer.messages import ChildMessage, Failed

JobFactory = Callable[..., JobConfig]
Run = Callable[[Any], tuple[int, str]]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a job file as `python -m trainer` does; the exit code and what was said."""

    def run(content: Any) -> tuple[int, str]:
        path = tmp_path / "job.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        messages: list[ChildMessage] = []
        code = process.run(path, emit=messages.append, control=FlagControl())
        assert "Traceback" not in capsys.readouterr().err
        assert isinstance(messages[-1], Failed)
        return code, f"{messages[-1].message} {messages[-1].remedy}"

    return run


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "a job is a JSON object, not list"),
        (b'{"hyperparameters": {"learning_rate": NaN}}', "NaN is not a number"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b"{}", "model is missing (2 more). Add model."),
    ],
)
def test_a_file_that_is_no_job_is_refused(refused: Run, content: bytes, said: str) -> None:
    code, words = refused(content)
    assert code == 2
    assert said in words


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("learning_rate", 1e-4, "It belongs in 'hyperparameters': hyperparameters.learning_rate"),
        ("num_epochs", 2, "hyperparameters.num_epochs"),
        ("batch_size", 8, "It belongs in 'hyperparameters': hyperparameters.tokens_per_batch"),
        ("max_length", 512, "It belongs in 'model': model.max_length"),
        ("model_name", "Qwen3-0.6B", "It belongs in 'locked': locked.model_name"),
        ("base_model", "x", "It belongs in 'model': model.path"),
        ("output_dir", "x", "It belongs in 'output': output.checkpoints_dir"),
        ("dataset", "x", "It belongs in 'data': data.path"),
        ("profil", {}, "Did you mean profile?"),
        ("profile.name", "emoji_thnk", "Did you mean emoji_think?"),
        ("profile.name", "", "profile.name = ''"),
        ("profile.nam", "x", "Did you mean profile.name?"),
        ("hyperparameters.learning_rate", "fast", "learning_rate = 'fast'"),
        ("hyperparameters.learning_rate", -1, "learning_rate = -1"),
        ("hyperparameters.num_epochs", True, "not true or false"),
        ("hyperparameters.lr", 1e-3, "Did you mean hyperparameters.learning_rate?"),
        ("hyperparameters", [], "hyperparameters = []"),
        ("model.path", 7, "model.path = 7"),
        ("model.max_length", 1, "model.max_length = 1"),
        ("model.dtype", "int8", "'auto', 'float32' or 'bfloat16'"),
        ("data.overlong", "cut", "'drop', 'truncate' or 'reject'"),
        ("data.pth", "x", "Did you mean data.path?"),
        ("output.num_checkpoints", 0, "output.num_checkpoints = 0"),
        ("environment.device", "tpu", "environment.device = 'tpu'"),
        ("monitoring.report_every_seconds", -1, "monitoring.report_every_seconds = -1"),
        ("locked.max_length", 4096, "max_length is locked to 4096, but model.max_length has 128"),
        ("locked.vocab_size", 151936, "vocab_size is locked to 151936"),
        ("locked.model_architecture", "LlamaForCausalLM", "locked to 'LlamaForCausalLM'"),
        ("locked.model_name", "Qwen3-8B", "model_name = 'Qwen3-8B' does not agree with the model at"),
        ("resume", "perhaps", "resume = 'perhaps'"),
        ("data.path", "a\0b", "data.path = 'a\\x00b': it holds a NUL character"),
        ("job_id", "\ud800", "job_id = '\\ud800': it holds half of a surrogate pair"),
        ("\ud800", 1, "The job = '\\ud800': Input should be a valid string"),
        ("environment.device", "cuda:99999999999999999999", "such as cuda:1"),
        ("environment.max_part_tokens", 1 << 63, "environment.max_part_tokens = 9223372036854775808"),
        ("hyperparameters.tokens_per_batch", 1 << 63, "tokens_per_batch = 9223372036854775808"),
        ("locked.base_model", "~nosuchuser/x", "base_model is locked to '~nosuchuser/x'"),
    ],
)
def test_a_bad_setting_is_refused_with_its_value_and_a_remedy(
    refused: Run, job: JobFactory, place: str, value: object, said: str
) -> None:
    content: dict[str, Any] = json.loads(job().model_dump_json())
    *sections, name = place.split(".")
    part = content
    for section in sections:
        part = part[section]
    part[name] = value
    code, words = refused(content)
    assert code == 2
    assert said in words


@pytest.mark.parametrize(
    ("section", "field", "value", "said", "expected"),
    [
        ("data", "path", "missing.jsonl", "missing.jsonl cannot be read", 3),
        ("data", "path", ".", "cannot be read", 3),
        ("data", "path", "n" * 300, "cannot be read: File name too long", 3),
        ("data", "token_cache_dir", "/dev/null/x", "The tokens cannot be kept in /dev/null/x", 2),
        ("output", "checkpoints_dir", "n" * 300, "cannot be made: File name too long", 2),
        ("model", "path", "n" * 300, "cannot be read: File name too long. Check the path", 6),
        ("model", "path", "nowhere", "is not a model directory: it has no config.json", 6),
    ],
)
def test_a_path_to_nothing_is_named(
    refused: Run, job: JobFactory, section: str, field: str, value: str, said: str, expected: int
) -> None:
    code, words = refused(json.loads(job(**{section: {field: value}}).model_dump_json()))
    assert code == expected
    assert said in words


@pytest.mark.parametrize(
    ("rows", "profile", "said"),
    [
        ([{"text": "x"}], "plain_sft", "line 1: is in no known form"),
        (
            [{"prompt": "a", "completion": "<think>b</think>"}],
            "emoji_think",
            "Row 1 is not for profile emoji_think",
        ),
        ([{"prompt": "add 1 2", "completion": "3"}], "regime3", "the canonical form is '(op arg1 arg2)'"),
        ([{"prompt": "x" * 300, "completion": "y"}], "plain_sft", "rows are longer than 128 tokens"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(
    refused: Run,
    job: JobFactory,
    write_rows: Callable[..., Path],
    rows: list[dict[str, Any]],
    profile: str,
    said: str,
) -> None:
    path = write_rows(rows, name="bad.jsonl")
    config = job(data={"path": str(path)}).changed(profile={"name": profile})
    code, words = refused(json.loads(config.model_dump_json()))
    assert code == 3
    assert said in words


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ raise_exception('I take nobody') }}"], ids=["broken", "refusing"]
)
def test_a_template_that_shows_nothing_is_the_models_fault(
    refused: Run, job: JobFactory, model_directory: Path, tmp_path: Path, template: str
) -> None:
    copy = Path(shutil.copytree(model_directory, tmp_path / "copy"))
    (copy / "chat_template.jinja").write_text(template)
    code, words = refused(json.loads(job(model={"path": str(copy)}).model_dump_json()))
    assert code == 6
    assert "chat template cannot show a question and its answer" in words
    assert "Row" not in words


def test_the_engine_alone_refuses_the_same(job: JobFactory) -> None:
    config = job().changed(profile={"name": "nobody"})
    with pytest.raises(ConfigError, match="no profile 'nobody'"):
        TrainerEngine(emit=lambda message: None).run_job(config)


def test_a_profile_reaches_the_manifest_of_what_it_taught(job: JobFactory, write_rows: Any) -> None:
    path = write_rows([{"prompt": "(ADD 1 2)", "completion": "3"}], name="forms.jsonl")
    config = job(data={"path": str(path)}).changed(profile={"name": "regime3"})
    messages: list[ChildMessage] = []
    result = TrainerEngine(emit=messages.append).run_job(config)
    manifest = json.loads((Path(str(result.final_checkpoint)) / "manifest.json").read_text())
    assert manifest["config"]["profile"] == {"name": "regime3"}
