"""Shared by the trainer's tests: one very small model a session, rows, and jobs made of both."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trainer.config.job import JobConfig, check_job
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset, tokenize_file
from trainer.core.engine import TrainerEngine
from trainer.core.models import load_model, load_tokenizer, no_progress_bars
from trainer.messages import ChildMessage
from trainer.testing import FakeClock

CPU = torch.device("cpu")
SPECIAL_TOKENS = ("<|pad|>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHARACTERS = "\n " + string.ascii_letters + string.digits + string.punctuation
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

JobFactory = Callable[..., JobConfig]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 32, one token a character."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = _tokenizer()
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with no_progress_bars():
        Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def tokenizer(model_directory: Path) -> Any:
    return load_tokenizer(model_directory)


@pytest.fixture
def model(model_directory: Path, tokenizer: Any) -> Any:
    return load_model(model_directory, device=CPU, tokenizer=tokenizer)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSONL."""

    def write(rows: Sequence[dict[str, Any]], *, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def rows_file(write_rows: Callable[..., Path]) -> Path:
    """24 rows of different lengths."""
    words = [string.ascii_lowercase[index : index + 2 + index % 7] for index in range(20)]
    rows = [{"prompt": f"turn {word}", "completion": word[::-1]} for word in words]
    return write_rows([*rows, *rows[:4]])


@pytest.fixture
def suite(write_rows: Callable[..., Path]) -> Path:
    """40 words that no training row spells."""
    words = [
        string.ascii_uppercase[index % 20 : index % 20 + 2 + index % 5] + str(index) for index in range(40)
    ]
    return write_rows(
        [{"prompt": f"turn {word}", "completion": word[::-1]} for word in words], name="suite.jsonl"
    )


@pytest.fixture
def dataset(rows_file: Path, tokenizer: Any) -> TokenizedDataset:
    return tokenize_file(rows_file, encoder=ChatEncoder(tokenizer), max_length=128, overlong="drop")


@pytest.fixture
def job(tmp_path: Path, model_directory: Path, rows_file: Path) -> JobFactory:
    """A job of six steps that reports each of them; keyword arguments replace whole sections' fields."""

    def make(**sections: Any) -> JobConfig:
        value: dict[str, Any] = {
            "job_id": "job-1",
            "hyperparameters": {"learning_rate": 1e-3, "warmup_steps": 2, "tokens_per_batch": 240},
            "model": {"path": str(model_directory), "max_length": 128},
            "data": {"path": str(rows_file), "dataset_id": "dataset-1"},
            "output": {"checkpoints_dir": str(tmp_path / "checkpoints")},
            "environment": {"device": "cpu", "num_threads": 1},
            "monitoring": {"report_every_seconds": 0},
        }
        for name, changes in sections.items():
            value[name] = {**value[name], **changes} if isinstance(changes, dict) else changes
        return check_job(value)

    return make


@pytest.fixture
def said() -> list[ChildMessage]:
    """What the engine of the same test emitted."""
    return []


@pytest.fixture
def engine(said: list[ChildMessage]) -> Callable[..., TrainerEngine]:
    def make(**options: Any) -> TrainerEngine:
        return TrainerEngine(**{"emit": said.append, "clock": FakeClock(), **options})

    return make


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        chat_template=PLAIN_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
