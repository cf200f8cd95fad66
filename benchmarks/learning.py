"""A minute's learning of the demo's task: accuracy on held-out words against time, beside Hugging Face's
Trainer.

Both train the same untrained model on the same words, at the same constant learning rates after a warm-up and
with about as many rows a batch, and write their weights every few seconds; what that costs is part of their
time. The weights are judged afterwards by the product's own evaluation. Several seeds, contenders in turns.

One setting, the default, takes about ten minutes; more show that it favours nobody.

    python -m benchmarks.learning [--seconds 60] [--seeds 3] [--rows 8 32] [--rates 1e-3 3e-3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.trainers import labelled_rows, padded, peer_arguments
from inference.evaluate import evaluate_rows
from inference.model import load_model as load_for_inference
from inference.progress import no_progress_bars
from inference.tiny import build_tiny_model
from intelligence.statistics import wilson_interval
from registry.records import GenerationSettings
from registry.rows import ChatRow, read_rows
from tasks.demo.plan import TrainingFile
from tasks.demo.words import instruction, write_suite, write_training_file
from trainer.config.job import check_job
from trainer.control import Request
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset, tokenize_file
from trainer.core.engine import TrainerEngine
from trainer.core.models import load_model, load_tokenizer
from trainer.messages import CheckpointSaved, ChildMessage, Started

WORDS = TrainingFile("words-3-to-7", "normal", 7, 60_000)
MAX_LENGTH = 256
TOKENS_PER_ROW = 32  # the longest of these rows; a batch of so many rows is that many times this
NUM_ROWS = (32,)  # HF's default of 8 costs it more steps a row than it costs us
LEARNING_RATES = (3e-3,)
WARMUP_STEPS = 20
NUM_SAVED = 12
MANY_EPOCHS = 1000
REPLY = GenerationSettings(max_new_tokens=16)


@dataclass(frozen=True)
class Lesson:
    """What is learnt, and what it is judged on."""

    directory: Path
    rows: Path
    dataset: TokenizedDataset
    suite: list[ChatRow]
    model: Path


@dataclass
class Course:
    """The weights that a contender wrote: (seconds since its first step could be taken, where they lie)."""

    seconds: float
    began: float = 0.0
    saved: list[tuple[float, Path]] = field(default_factory=list)

    def begin(self) -> None:
        """From here on its time counts."""
        self.began = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds of its time."""
        return time.perf_counter() - self.began

    def note(self, directory: Path) -> None:
        """These weights were written just now."""
        self.saved.append((self.elapsed(), directory))

    @property
    def request(self) -> Request | None:
        """The engine's control: stop once the time is up."""
        return "stop" if self.began and self.elapsed() > self.seconds else None

    def hear(self, message: ChildMessage) -> None:
        """The engine's messages."""
        if isinstance(message, Started):
            self.begin()
        if isinstance(message, CheckpointSaved):
            self.note(Path(message.path))


Contender = Callable[[Lesson, Course, int], None]


def learn_with_engine(num_rows: int, *, learning_rate: float) -> Contender:
    """tandem's engine; its checkpoints hold the optimizer's state too."""

    def learn(lesson: Lesson, course: Course, seed: int) -> None:
        job = {
            "model": {"path": str(lesson.model), "max_length": MAX_LENGTH},
            "data": {"path": str(lesson.rows)},
            "output": {
                "checkpoints_dir": tempfile.mkdtemp(dir=lesson.directory),
                "checkpoint_every_steps": 800 // num_rows,
            },
            "hyperparameters": {
                "learning_rate": learning_rate,
                "schedule": "constant",
                "warmup_steps": WARMUP_STEPS,
                "num_epochs": MANY_EPOCHS,
                "tokens_per_batch": TOKENS_PER_ROW * num_rows,
                "seed": seed,
            },
            "environment": {"device": "cpu", "num_threads": torch.get_num_threads()},
        }
        TrainerEngine(emit=course.hear, control=course).run_job(check_job(job))

    return learn


def learn_with_hf(num_rows: int, *, learning_rate: float) -> Contender:
    """Hugging Face's Trainer, its other settings as they are; it saves the weights alone."""

    def learn(lesson: Lesson, course: Course, seed: int) -> None:
        from transformers import PrinterCallback, Trainer, TrainingArguments

        directory = Path(tempfile.mkdtemp(dir=lesson.directory))
        tokenizer = load_tokenizer(lesson.model)
        arguments = peer_arguments(directory) | {
            "per_device_train_batch_size": num_rows,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": WARMUP_STEPS,
            "seed": seed,
        }
        trainer = Trainer(
            model=load_model(lesson.model, device=torch.device("cpu"), tokenizer=tokenizer),
            args=TrainingArguments(**arguments),
            train_dataset=labelled_rows(lesson.dataset),
            data_collator=padded,
            callbacks=[_make_keeper(course, directory=directory, tokenizer=tokenizer)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    return learn


def contenders(num_rows: Sequence[int], *, learning_rates: Sequence[float]) -> dict[str, Contender]:
    """Both trainers with each number of rows a batch and each learning rate."""
    return {
        f"{name}, {rows} rows, lr {rate:g}": make(rows, learning_rate=rate)
        for rows in num_rows
        for rate in learning_rates
        for name, make in (("tandem", learn_with_engine), ("HF Trainer", learn_with_hf))
    }


def main() -> int:
    """Learn in turns, judge, print accuracy at each tenth of the time."""
    options = _options()
    torch.set_num_threads(options.threads)
    marks = [options.seconds * part / 6 for part in range(1, 7)]
    chosen = contenders(options.rows, learning_rates=options.rates)
    found: dict[str, list[list[float]]] = {name: [] for name in chosen}
    print(f"{len(chosen) * options.seeds} runs of {options.seconds:g} s, each judged at {len(marks)} times")
    with tempfile.TemporaryDirectory() as name:
        for seed in range(options.seeds):
            lesson = _lesson(Path(name) / str(seed), seed=seed)
            for contender, learn in chosen.items():
                course = Course(options.seconds)
                learn(lesson, course, seed)
                found[contender].append(_accuracies(course, marks=marks, suite=lesson.suite))
                print(f"seed {seed}, {contender}: {_shares(found[contender][-1])}", flush=True)
        num_rows = len(lesson.suite)
    _print_table(found, marks=marks, num_rows=num_rows)
    return 0


def _make_keeper(course: Course, *, directory: Path, tokenizer: Any) -> Any:
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        """Writes the weights as often a second as the engine does, and ends the run in time."""

        next_at = interval = course.seconds / NUM_SAVED

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            course.begin()

        def on_step_end(self, *positional: Any, **named: Any) -> None:
            is_over = course.elapsed() > course.seconds
            if is_over or course.elapsed() >= self.next_at:
                self.next_at += self.interval
                place = directory / f"weights-{len(course.saved)}"
                with no_progress_bars():
                    named["model"].save_pretrained(place)
                tokenizer.save_pretrained(place)
                course.note(place)
            positional[2].should_training_stop = is_over

    return Keeper()


def _lesson(directory: Path, *, seed: int) -> Lesson:
    directory.mkdir()
    held_out = write_suite(directory / "suite.jsonl")
    write_training_file(directory / "rows.jsonl", file=WORDS, held_out=held_out)
    model = build_tiny_model(directory / "model", seed=seed, phrases=(instruction(),))
    encoder = ChatEncoder(load_tokenizer(model))
    dataset = tokenize_file(
        directory / "rows.jsonl", encoder=encoder, max_length=MAX_LENGTH, overlong="reject"
    )
    suite = [row for row in read_rows(directory / "suite.jsonl") if row.difficulty != "hard"]
    return Lesson(directory, directory / "rows.jsonl", dataset, suite, model)


def _accuracies(course: Course, *, marks: list[float], suite: list[ChatRow]) -> list[float]:
    """The share answered right by the last weights written until each mark; 0 where there were none."""
    judged: dict[Path, float] = {}
    accuracies = []
    for mark in marks:
        # The last weights are written as the time ends, so a little after the last mark.
        written = [place for seconds, place in course.saved if seconds <= mark or mark == marks[-1]]
        if written and written[-1] not in judged:
            judged[written[-1]] = _accuracy(written[-1], suite=suite)
        accuracies.append(judged[written[-1]] if written else 0.0)
    return accuracies


def _accuracy(directory: Path, *, suite: list[ChatRow]) -> float:
    loaded = load_for_inference(directory, device="cpu", verify_files=False)
    answers = evaluate_rows(loaded, suite, settings=REPLY)
    return sum(answer.is_correct for answer in answers) / len(answers)


def _print_table(found: dict[str, list[list[float]]], *, marks: list[float], num_rows: int) -> None:
    print(f"\n{num_rows} held-out words; median of the seeds (least to most), after so many seconds")
    print(f"{'':<30}" + "".join(f"{mark:>18.0f}" for mark in marks))
    for name, runs in found.items():
        cells = [
            f"{statistics.median(values):.0%} ({min(values):.0%}-{max(values):.0%})"
            for values in zip(*runs, strict=True)
        ]
        print(f"{name:<30}" + "".join(f"{cell:>18}" for cell in cells))
    half = wilson_interval(num_rows // 2, num_trials=num_rows)
    print(f"One accuracy of 50 % has a 95 % interval of {half.low:.0%} to {half.high:.0%}.")


def _shares(values: list[float]) -> str:
    return " ".join(f"{value:.0%}" for value in values)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", type=int, default=NUM_ROWS, help="a batch")
    parser.add_argument("--rates", nargs="+", type=float, default=LEARNING_RATES, help="learning rates")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
