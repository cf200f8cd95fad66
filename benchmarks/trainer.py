"""tandem's training engine beside Hugging Face's Trainer and a bare loop, in one run: useful tokens a second.

Same rows, same model, same optimizer, same number of threads. Useful tokens are those of the rows, never
padding. The contenders take turns, so that a drift of the machine favours none; each starts from the same
untrained weights. The bare loop takes the engine's own batches and does nothing but forward, backward and
update: the distance to it is what messages, checks and control cost.

    python -m benchmarks.trainer [--seconds 15] [--repeats 3] [--rows FILE] [--model DIR]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference.tiny import build_tiny_model
from trainer.config.job import JobConfig, check_job
from trainer.control import Request
from trainer.core.batching import BatchPlan
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset, tokenize_file
from trainer.core.engine import TrainerEngine
from trainer.core.loss import answer_loss_sum, collate
from trainer.core.models import load_model, load_tokenizer
from trainer.core.optimizer import make_optimizer
from trainer.messages import ChildMessage, Progress, Started

CPU = torch.device("cpu")
MAX_LENGTH = 512
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True)
class Material:
    """What every contender trains on."""

    directory: Path
    model: Path
    rows: Path
    dataset: TokenizedDataset
    tokens_per_batch: int

    def job(self) -> JobConfig:
        """The engine's job, in a directory of its own."""
        return check_job(
            {
                "model": {"path": str(self.model), "max_length": MAX_LENGTH},
                "data": {"path": str(self.rows)},
                "output": {"checkpoints_dir": tempfile.mkdtemp(dir=self.directory)},
                "hyperparameters": {"num_epochs": 1000, "tokens_per_batch": self.tokens_per_batch},
                "environment": {"device": "cpu", "num_threads": torch.get_num_threads()},
            }
        )


Contender = Callable[[Material, float], float]


class Deadline:
    """A control that stops a run `seconds` after its first step may be taken."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.started = 0.0
        self.last_report = (0.0, 0)

    @property
    def request(self) -> Request | None:
        """Stop once the time is up."""
        return "stop" if time.perf_counter() - self.started > self._seconds else None

    def hear(self, message: ChildMessage) -> None:
        """Note when the run began, and how far it came."""
        if isinstance(message, Started):
            self.started = time.perf_counter()
        if isinstance(message, Progress):
            self.last_report = (time.perf_counter(), message.num_tokens)


def run_engine(material: Material, seconds: float) -> float:
    """tandem's engine with all it does, up to its last report."""
    deadline = Deadline(seconds)
    TrainerEngine(emit=deadline.hear, control=deadline).run_job(material.job())
    reported_at, num_tokens = deadline.last_report
    return num_tokens / (reported_at - deadline.started)


def run_bare_loop(material: Material, seconds: float) -> float:
    """Forward, backward, update, and nothing else, on the engine's batches."""
    config, dataset = material.job(), material.dataset
    tokenizer = load_tokenizer(material.model)
    model = load_model(material.model, device=CPU, tokenizer=tokenizer)
    optimizer = make_optimizer(model, hyperparameters=config.hyperparameters)
    plan = BatchPlan(
        lengths=dataset.lengths, tokens_per_batch=material.tokens_per_batch, num_epochs=1000, seed=0
    )
    num_tokens, started = 0, time.perf_counter()
    for step in itertools.count():
        batch = collate(dataset, indices=plan.batch(step), device=CPU)
        (answer_loss_sum(model, batch=batch) / batch.num_answers).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += batch.num_tokens
        if time.perf_counter() - started > seconds:
            break
    return num_tokens / (time.perf_counter() - started)


def run_hf_trainer(material: Material, seconds: float, *, sampling: str = "random") -> float:
    """Hugging Face's Trainer with its default of 8 padded and masked rows a batch."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    counts: list[int] = []  # of the batches that were collated, which may be one more than were trained on

    def collate_and_count(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return _padded(rows)

    watch = _make_watch(counts, seconds=seconds)
    tokenizer = load_tokenizer(material.model)
    trainer = Trainer(
        model=load_model(material.model, device=CPU, tokenizer=tokenizer),
        args=TrainingArguments(
            output_dir=str(material.directory / "hf"),
            num_train_epochs=1000,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy=sampling,
        ),
        train_dataset=_labelled_rows(material.dataset),
        data_collator=collate_and_count,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)  # the table is all that is printed
    trainer.train()
    return watch.num_tokens / (watch.ended - watch.started)


def run_hf_grouped(material: Material, seconds: float) -> float:
    """The same with rows of like length together."""
    return run_hf_trainer(material, seconds, sampling="group_by_length")


CONTENDERS: dict[str, Contender] = {
    "HF Trainer, default": run_hf_trainer,
    "HF Trainer, group_by_length": run_hf_grouped,
    "bare loop, same batches": run_bare_loop,
    "tandem": run_engine,
}


def main() -> int:
    """Measure every contender in turns and print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    contenders = dict(CONTENDERS)
    if importlib.util.find_spec("accelerate") is None:
        print("HF Trainer: not measured, `accelerate` is not installed.")
        contenders = {name: run for name, run in contenders.items() if not name.startswith("HF")}
    with tempfile.TemporaryDirectory() as directory:
        material = _material(options, directory=Path(directory))
        print(_describe(material, options=options))
        for run in contenders.values():
            run(material, WARM_UP_SECONDS)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.repeats):
            for name, run in contenders.items():
                rates[name].append(run(material, options.seconds))
    _print_table(rates)
    return 0


def _make_watch(counts: list[int], *, seconds: float) -> Any:
    """A callback that counts the tokens of the steps taken and ends the run in time."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        started = ended = 0.0
        num_tokens = num_steps = 0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *positional: Any, **_: Any) -> None:
            self.num_tokens += counts[self.num_steps]
            self.num_steps += 1
            self.ended = time.perf_counter()
            positional[2].should_training_stop = self.ended - self.started > seconds

    return Watch()


def _print_table(rates: dict[str, list[float]]) -> None:
    first = statistics.median(next(iter(rates.values())))
    print(f"{'':<28} {'tokens/s':>9} {'lowest':>9} {'highest':>9} {'n':>3} {'ratio':>6}")
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"{name:<28} {median:9,.0f} {min(values):9,.0f} {max(values):9,.0f} "
            f"{len(values):3d} {median / first:5.2f}x"
        )


def _describe(material: Material, *, options: argparse.Namespace) -> str:
    lengths = material.dataset.lengths
    return (
        f"{len(lengths)} rows of {lengths.min()} to {lengths.max()} tokens (mean {lengths.mean():.0f}), "
        f"{material.tokens_per_batch} tokens a batch, {options.threads} thread(s), "
        f"{options.repeats} x {options.seconds:g} s each in turns"
    )


def _labelled_rows(dataset: TokenizedDataset) -> list[dict[str, list[int]]]:
    rows = []
    for start, stop in itertools.pairwise(dataset.starts):
        tokens = dataset.tokens[start:stop].tolist()
        learnt = dataset.is_answer[start:stop].tolist()
        labels = [token if is_answer else -100 for token, is_answer in zip(tokens, learnt, strict=True)]
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def _padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        length = len(row["input_ids"])
        batch["input_ids"].append(row["input_ids"] + [0] * (width - length))
        batch["labels"].append(row["labels"] + [-100] * (width - length))
        batch["attention_mask"].append([1] * length + [0] * (width - length))
    return {name: torch.tensor(values) for name, values in batch.items()}


def _material(options: argparse.Namespace, *, directory: Path) -> Material:
    model = options.model or build_tiny_model(directory / "model")
    rows = options.rows or _write_rows(directory / "rows.jsonl")
    encoder = ChatEncoder(load_tokenizer(model))
    dataset = tokenize_file(rows, encoder=encoder, max_length=MAX_LENGTH, overlong="drop")
    return Material(
        directory=directory,
        model=model,
        rows=rows,
        dataset=dataset,
        tokens_per_batch=options.tokens_per_batch,
    )


def _write_rows(path: Path, *, num_rows: int = 2000) -> Path:
    """Letters to be reversed, of long-tailed length: median 40 characters a turn."""
    source = random.Random(0)
    with path.open("w") as stream:
        for _ in range(num_rows):
            length = int(min(220, max(3, source.lognormvariate(3.7, 0.8))))
            text = "".join(source.choices(string.ascii_lowercase, k=length))
            stream.write(json.dumps({"prompt": text, "completion": text[::-1]}) + "\n")
    return path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of training a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--model", type=Path, help="model directory; an untrained tiny one without")
    parser.add_argument("--rows", type=Path, help="JSONL file; letters of long-tailed length without")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
