"""Memory that really runs out: the kernel refuses it to a process that trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from inference.tiny import build_tiny_tokenizer
from trainer.core.models import no_progress_bars

MEGABYTE = 10**6
# Limited from here on: what a process has at this moment, and so many bytes more (RLIMIT_AS).
TRAIN = """
import gc, json, resource, sys
from pathlib import Path
from trainer.config.job import check_job
from trainer.core.engine import TrainerEngine
from trainer.errors import OutOfMemory

job, more_bytes = json.loads(sys.argv[1]), int(sys.argv[2])
job["model"]["path"], real = sys.argv[3], job["model"]["path"]
if more_bytes:
    # Libraries take what they take at first use before the limit stands.
    output = job["output"]["checkpoints_dir"]
    warm = {**job, "output": {"checkpoints_dir": output + "-warm"}, "hyperparameters": {"max_steps": 1}}
    TrainerEngine(emit=lambda _: None).run_job(check_job(warm))
    gc.collect()  # what lies about of that run would be room for the next one
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            limit = int(line.split()[1]) * 1024 + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
job["model"]["path"] = real
warned = []
def hear(message):
    if message.type == "warned":
        warned.append(message.message)
try:
    result = TrainerEngine(emit=hear).run_job(check_job(job))
    print(json.dumps({"warned": warned, **result.model_dump(mode="json")}))
except OutOfMemory as error:
    print(json.dumps({"warned": warned, "error": error.message}))
"""


def build(directory: Path, *, vocabulary: int) -> Path:
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    with no_progress_bars():
        Qwen3ForCausalLM(config).save_pretrained(directory)
    build_tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Logits of a large vocabulary take nearly all of the memory."""
    root = tmp_path_factory.mktemp("models")
    return {"large": build(root / "large", vocabulary=20_000), "small": build(root / "small", vocabulary=200)}


def train(
    directory: Path,
    *,
    models: dict[str, Path],
    name: str,
    more_bytes: int,
    longest: int = 60,
    kind: str = "plain",
) -> dict[str, Any]:
    rows = [{"prompt": "say it", "completion": "abcdefghij"[: 3 + number % 8] * 4} for number in range(48)]
    rows[20]["completion"] = "k" * longest
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {
        "model": {"path": str(models["large"])},
        "data": {"path": str(directory / "rows.jsonl")},
        "output": {"checkpoints_dir": str(directory / name)},
        "hyperparameters": {"tokens_per_batch": 1024, "learning_rate": 1e-3, "warmup_steps": 1},
        "environment": {"device": "cpu", "cross_entropy": kind},
        "monitoring": {"record_rows": True},
    }
    command = [sys.executable, "-c", TRAIN, json.dumps(job), str(more_bytes), str(models["small"])]
    # A second arena of the C library is 64 MB of addresses, which a thread has reserved or has not.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(directory: Path) -> list[list[int]]:
    lines = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    return [line["rows"] for line in lines if line["what"] == "taken"]


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "megabytes"), [("plain", 56), ("chunked", 36)])
def test_a_run_that_the_kernel_refuses_memory_takes_the_same_steps_in_smaller_parts(
    tmp_path: Path, models: dict[str, Path], kind: str, megabytes: int
) -> None:
    free = train(tmp_path, models=models, name="free", more_bytes=0, kind=kind)
    limited = train(tmp_path, models=models, name="limited", more_bytes=megabytes * MEGABYTE, kind=kind)
    assert free["warned"] == []
    assert limited["warned"]
    assert "Memory ran out at" in limited["warned"][0]
    assert limited["state"] == "finished"
    assert (limited["step"], limited["num_tokens"]) == (free["step"], free["num_tokens"])
    assert rows_of(tmp_path / "limited") == rows_of(tmp_path / "free")
    assert limited["mean_loss"] == pytest.approx(free["mean_loss"], abs=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "megabytes", "num_splits"), [("plain", 60, 2), ("chunked", 30, 0)])
def test_a_row_that_does_not_fit_alone_is_named(
    tmp_path: Path, models: dict[str, Path], kind: str, megabytes: int, num_splits: int
) -> None:
    found = train(
        tmp_path, models=models, name="tight", more_bytes=megabytes * MEGABYTE, longest=700, kind=kind
    )
    assert "Row 21 alone" in found["error"]
    # Plain logits are halved again and again before it gives up; chunks of the shorter rows fit as they are.
    assert len(found["warned"]) >= num_splits
