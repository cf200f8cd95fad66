"""The training contenders: each trains for some seconds and gives its useful tokens a second.

Each starts from the same untrained weights and takes AdamW over the same rows. What the peers decide
otherwise, such as rows a batch, is left at their defaults: that is what a user gets.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.material import MAX_LENGTH, Clock, Material
from trainer.control import Request
from trainer.core.batching import BatchPlan
from trainer.core.data import TokenizedDataset
from trainer.core.engine import TrainerEngine
from trainer.core.loss import answer_loss_sum, collate
from trainer.core.models import load_model, load_tokenizer
from trainer.core.optimizer import make_optimizer
from trainer.messages import ChildMessage, Progress, Started

CPU = torch.device("cpu")
MANY_EPOCHS = 1000
NO_LOSS = -100

Contender = Callable[[Material, float], float]


class Deadline:
    """A control that stops a run `seconds` after its first step may be taken."""

    def __init__(self, seconds: float, *, clock: Clock = time.perf_counter) -> None:
        self._seconds = seconds
        self._clock = clock
        self.started = 0.0
        self.last_report = (0.0, 0)

    @property
    def request(self) -> Request | None:
        """Stop once the time is up."""
        return "stop" if self._clock() - self.started > self._seconds else None

    def hear(self, message: ChildMessage) -> None:
        """Note when the run began, and how far it came."""
        if isinstance(message, Started):
            self.started = self._clock()
        if isinstance(message, Progress):
            self.last_report = (self._clock(), message.num_tokens)


def run_engine(material: Material, seconds: float, *, batching: str = "auto") -> float:
    """tandem's engine with all it does, up to its last report."""
    deadline = Deadline(seconds, clock=material.clock)
    job = material.job(environment={"batching": batching})
    TrainerEngine(emit=deadline.hear, control=deadline).run_job(job)
    reported_at, num_tokens = deadline.last_report
    return num_tokens / (reported_at - deadline.started)


def run_engine_packed(material: Material, seconds: float) -> float:
    """The same with rows end to end, each attended to by itself: what a card with a kernel for it does."""
    return run_engine(material, seconds, batching="packed")


def run_bare_loop(material: Material, seconds: float) -> float:
    """Forward, backward, update, and nothing else, on the engine's batches."""
    config, dataset = material.job(), material.dataset
    tokenizer = load_tokenizer(material.model)
    model = load_model(material.model, device=CPU, tokenizer=tokenizer)
    optimizer = make_optimizer(model, hyperparameters=config.hyperparameters)
    plan = BatchPlan(
        lengths=dataset.lengths, tokens_per_batch=material.tokens_per_batch, num_epochs=MANY_EPOCHS, seed=0
    )
    num_tokens, started = 0, material.clock()
    for step in itertools.count():
        batch = collate(dataset, indices=plan.batch(step), device=CPU)
        (answer_loss_sum(model, batch=batch) / batch.num_answers).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += batch.num_tokens
        if material.clock() - started > seconds:
            break
    return num_tokens / (material.clock() - started)


def run_hf_trainer(material: Material, seconds: float, *, sampling: str = "random") -> float:
    """Hugging Face's Trainer with its default of 8 padded and masked rows a batch."""
    from transformers import Trainer, TrainingArguments

    counts: list[int] = []

    def collate_and_count(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return padded(rows)

    arguments = TrainingArguments(
        **peer_arguments(material.directory / "peer"), train_sampling_strategy=sampling
    )
    trainer = Trainer(
        model=_model(material),
        args=arguments,
        train_dataset=labelled_rows(material.dataset),
        data_collator=collate_and_count,
    )
    return _train(trainer, counts=counts, seconds=seconds, clock=material.clock)


def run_hf_grouped(material: Material, seconds: float) -> float:
    """The same with rows of like length together."""
    return run_hf_trainer(material, seconds, sampling="group_by_length")


def run_trl(material: Material, seconds: float, **options: Any) -> float:
    """TRL's SFTTrainer on the same token ids and labels."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    trainer = SFTTrainer(
        model=_model(material),
        args=SFTConfig(
            **peer_arguments(material.directory / "peer"),
            max_length=MAX_LENGTH,
            gradient_checkpointing=False,  # on by default, and slower; none of the others does it here
            **options,
            bf16=False,
        ),
        train_dataset=datasets.Dataset.from_list(labelled_rows(material.dataset)),
        processing_class=load_tokenizer(material.model),
    )
    counts: list[int] = []
    inner = trainer.data_collator

    def collate_and_count(rows: list[dict[str, Any]]) -> Any:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return inner(rows)

    trainer.data_collator = collate_and_count
    return _train(trainer, counts=counts, seconds=seconds, clock=material.clock)


def run_trl_packing(material: Material, seconds: float) -> float:
    """TRL with rows packed by best fit to the greatest length, one pack a batch.

    More packs are one longer row with one larger mask where no varlen attention is registered: of 1, 2, 4 and
    8 packs, one was the fastest.
    """
    return run_trl(material, seconds, packing=True, per_device_train_batch_size=1)


CONTENDERS: dict[str, Contender] = {
    "HF Trainer, default": run_hf_trainer,
    "HF Trainer, group_by_length": run_hf_grouped,
    "TRL, default": run_trl,
    "TRL, packing": run_trl_packing,
    "bare loop, same batches": run_bare_loop,
    "tandem, packed": run_engine_packed,
    "tandem": run_engine,
}


def _train(trainer: Any, *, counts: list[int], seconds: float, clock: Clock) -> float:
    from transformers import PrinterCallback

    watch = _make_watch(counts, seconds=seconds, clock=clock)
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)  # the table is all that is printed
    trainer.train()
    return float(watch.num_tokens / (watch.ended - watch.started))


def _make_watch(counts: list[int], *, seconds: float, clock: Clock) -> Any:
    """A callback that counts the tokens of the steps taken and ends the run in time.

    `counts` is of the batches that were collated, which may be one more than were trained on.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        started = ended = 0.0
        num_tokens = num_steps = 0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = clock()

        def on_step_end(self, *positional: Any, **_: Any) -> None:
            self.num_tokens += counts[self.num_steps]
            self.num_steps += 1
            self.ended = clock()
            positional[2].should_training_stop = self.ended - self.started > seconds

    return Watch()


def peer_arguments(output_dir: Path) -> dict[str, Any]:
    """What every Hugging Face trainer is told: no files, no reports, no end before it is stopped."""
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": MANY_EPOCHS,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _model(material: Material) -> Any:
    return load_model(material.model, device=CPU, tokenizer=load_tokenizer(material.model))


def labelled_rows(dataset: TokenizedDataset) -> list[dict[str, list[int]]]:
    """Rows as Hugging Face's trainers take them: what is no answer has no label."""
    rows = []
    for start, stop in itertools.pairwise(dataset.starts):
        tokens = dataset.tokens[start:stop].tolist()
        learnt = dataset.is_answer[start:stop].tolist()
        labels = [token if is_answer else NO_LOSS for token, is_answer in zip(tokens, learnt, strict=True)]
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch on the right, padded to its longest row, with a mask."""
    width = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        length = len(row["input_ids"])
        batch["input_ids"].append(row["input_ids"] + [0] * (width - length))
        batch["labels"].append(row["labels"] + [NO_LOSS] * (width - length))
        batch["attention_mask"].append([1] * length + [0] * (width - length))
    return {name: torch.tensor(values) for name, values in batch.items()}
