"""Measures a run on held-out rows now and then, and on rows that it has learnt, at the very same weights.

The model is only read: no gradient, no random number, nothing of the run changes, so its weights are the same
to the bit with and without. All measuring together takes a set share of the time at most; where that is not
enough for a first measurement, there is none, and the reason is said.

Of several processes the first one decides when, and all measure together: where each holds a part of the
model, none can look at a row by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from registry.errors import TandemError
from registry.progress import GapState, MicroEvaluation
from trainer.clock import Clock
from trainer.config.pinned import profile_named
from trainer.core import loss as losses
from trainer.core.batching import Indices, split_to_limit
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset
from trainer.core.memory import free_memory, is_out_of_memory
from trainer.core.models import most_tokens
from trainer.core.run import Run
from trainer.core.runtime import only_looking
from trainer.errors import OutOfMemory
from trainer.monitoring.estimates import Sums, difference, ratio, share
from trainer.monitoring.held_out import held_out_sequences

MAX_PART_TOKENS = 1024  # logits over a real vocabulary are 0.6 GB for so many answers

GAP_TO_WATCH = 0.3
GAP_OF_OVERFITTING = 0.5

NO_FILE = "no validation suite is active"
NOT_YET = "nothing was measured yet: it must not take more than its share of the time"
OTHER_ROWS = "another process of this run has no rows, or others, to measure by"
RAN_OUT = "memory ran out while measuring, so it is not tried again"


class Probe:
    """Asked after each step. `last` is the newest measurement, `unmeasured_because` why there is none."""

    def __init__(self, run: Run, *, clock: Clock, warn: Callable[[str], None]) -> None:
        self.last: MicroEvaluation | None = None
        self.unmeasured_because = NOT_YET
        self._run = run
        self._settings = run.config.monitoring
        self._clock = clock
        self._warn = warn
        self._held_out = self._agreed(self._read_held_out())
        self._started = self._measured = clock.monotonic() if self._held_out is not None else 0.0
        self._first_tokens = run.num_tokens
        self._spent_seconds = 0.0
        self._longest_seconds = 0.0

    def after_step(self) -> None:
        """Measure, if it is time and there is time."""
        if self._held_out is None or not self._all_begin(self._held_out):
            return
        started = self._clock.monotonic()
        found = self._measured_on(self._held_out)
        if self._run.team.highest(int(found is None)):
            self._give_up(RAN_OUT)
            free_memory()
            return
        self.last = found
        self._measured = self._clock.monotonic()
        duration = self._measured - started
        self._spent_seconds += duration
        self._longest_seconds = max(self._longest_seconds, duration)
        self.unmeasured_because = ""
        if self.last is not None:
            self.last = self.last.changed(duration_seconds=duration)

    def _read_held_out(self) -> TokenizedDataset | None:
        run, settings = self._run, self._settings
        if settings.validation_path is None:
            self.unmeasured_because = NO_FILE
            return None
        max_length = run.config.model.max_length
        try:
            return held_out_sequences(
                settings.validation_path,
                encoder=ChatEncoder(run.tokenizer, profile=profile_named(run.config.profile.name)),
                training=run.dataset,
                max_length=min(max_length, most_tokens(run.model) or max_length),
                num_rows=settings.num_validation_rows,
            )
        except TandemError as error:
            self._give_up(error.message)
            return None

    def _agreed(self, held_out: TokenizedDataset | None) -> TokenizedDataset | None:
        """The rows, where every process has the same number of tokens to look at; else none has any."""
        team, num_tokens = self._run.team, 0 if held_out is None else len(held_out.tokens)
        if team.lowest(num_tokens) == team.highest(num_tokens):
            return held_out
        if held_out is not None:
            self._give_up(OTHER_ROWS)
        return None

    def _all_begin(self, held_out: TokenizedDataset) -> bool:
        team = self._run.team
        return bool(team.highest(int(team.is_first and self._is_due(held_out))))

    def _measured_on(self, held_out: TokenizedDataset) -> MicroEvaluation | None:
        """None where memory ran out. Where the model is in parts that ends the run: the others wait."""
        try:
            return measure(self._run, held_out=held_out)
        except OutOfMemory as error:
            raise OutOfMemory(
                f"Held-out rows were measured: {error.message}",
                remedy="With training.max_validation_share = 0 nothing is measured.",
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _give_up(self, reason: str) -> None:
        self._held_out = None
        self.unmeasured_because = reason
        self._warn(f"The gap between training and validation is not measured: {reason}")

    def _is_due(self, held_out: TokenizedDataset) -> bool:
        now = self._clock.monotonic()
        if self.last is not None and now - self._measured < self._settings.validate_every_seconds:
            return False
        elapsed = now - self._started
        expected = self._longest_seconds or self._expected_seconds(held_out, elapsed=elapsed)
        return self._spent_seconds + expected <= self._settings.max_validation_share * elapsed

    def _expected_seconds(self, held_out: TokenizedDataset, *, elapsed: float) -> float:
        """Of a first measurement, both sides: looking at a token is a third of learning from it."""
        num_trained = self._run.num_tokens - self._first_tokens
        return 2 / 3 * len(held_out.tokens) * elapsed / num_trained if num_trained else float("inf")


def measure(run: Run, *, held_out: TokenizedDataset) -> MicroEvaluation:
    """Loss and token accuracy at the run's weights: held out, and of rows that it has learnt."""
    with only_looking(run.model):
        validation = _sums(run, dataset=held_out, indices=np.arange(held_out.num_sequences))
        training = _sums(
            run, dataset=run.dataset, indices=learnt_sequences(run, limit=len(held_out.row_numbers))
        )
    return evaluation_of(validation, training=training, step=run.step)


def learnt_sequences(run: Run, *, limit: int) -> Indices:
    """At most `limit` sequences, spread evenly over the batches that this run has learnt: all of its epoch's
    once it has gone through the data, else those up to its step."""
    per_epoch = run.plan.steps_per_epoch
    epoch = (run.step - 1) // per_epoch
    num_batches = per_epoch if epoch else run.step
    steps = np.unique(np.linspace(0, num_batches - 1, min(limit, num_batches)).astype(np.int64))
    quota = -(-limit // len(steps))
    chosen = [_spread(run.plan.batch(epoch * per_epoch + int(step)), limit=quota) for step in steps]
    return _spread(np.concatenate(chosen), limit=limit)


@dataclass(frozen=True)
class SequenceSums:
    """Of each sequence, float64 [n]: nats, answer tokens said right, and answer tokens."""

    losses: Sums
    num_right: Sums
    num_answers: Sums


def evaluation_of(validation: SequenceSums, *, training: SequenceSums, step: int) -> MicroEvaluation:
    """Means, gap and what it is called; no number at all where a loss is not finite."""
    counts = {
        "num_validation_tokens": int(validation.num_answers.sum()),
        "num_training_tokens": int(training.num_answers.sum()),
    }
    if not (np.isfinite(validation.losses).all() and np.isfinite(training.losses).all()):
        problem = f"the loss is not finite at step {step}"
        return MicroEvaluation(step=step, duration_seconds=0.0, problem=problem, **counts)
    if len(training.losses) < 2:
        problem = "only one sequence was learnt so far"
        return MicroEvaluation(step=step, duration_seconds=0.0, problem=problem, **counts)
    validation_loss = ratio(validation.losses, counts=validation.num_answers)
    training_loss = ratio(training.losses, counts=training.num_answers)
    gap = difference(validation_loss, training_loss)
    return MicroEvaluation(
        step=step,
        validation_loss=validation_loss,
        training_loss=training_loss,
        gap=gap,
        gap_state=gap_state(gap.value),
        validation_accuracy=share(validation.num_right, counts=validation.num_answers),
        training_accuracy=share(training.num_right, counts=training.num_answers),
        duration_seconds=0.0,
        **counts,
    )


def gap_state(gap: float) -> GapState:
    """Under 0.3 nats an answer token is good, over 0.5 is overfitting."""
    if gap > GAP_OF_OVERFITTING:
        return "overfitting"
    return "watch" if gap >= GAP_TO_WATCH else "good"


def _spread(values: Indices, *, limit: int) -> Indices:
    if len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).astype(np.int64)]


def _sums(run: Run, *, dataset: TokenizedDataset, indices: Indices) -> SequenceSums:
    longest_first = indices[np.argsort(-dataset.lengths[indices], kind="stable")]
    parts = split_to_limit(longest_first, lengths=dataset.lengths, max_tokens=MAX_PART_TOKENS)
    found = [_part_sums(run, dataset=dataset, indices=part) for part in parts]
    return SequenceSums(
        losses=np.concatenate([part.losses for part in found]),
        num_right=np.concatenate([part.num_right for part in found]),
        num_answers=np.concatenate([part.num_answers for part in found]),
    )


def _part_sums(run: Run, *, dataset: TokenizedDataset, indices: Indices) -> SequenceSums:
    batch = losses.collate(dataset, indices=indices, device=run.device)
    nats, is_right = run.runner.compute(lambda: _answers(run.model, batch=batch)).cpu().numpy()
    width = batch.input_ids.shape[1]
    rows = batch.positions.cpu().numpy() // width
    return SequenceSums(
        losses=_by_row(rows, values=nats, num_rows=len(indices)),
        num_right=_by_row(rows, values=is_right, num_rows=len(indices)),
        num_answers=_by_row(rows, values=np.ones(len(rows)), num_rows=len(indices)),
    )


def _answers(model: Any, *, batch: losses.Batch) -> torch.Tensor:
    """float64 [2, answers]: nats of each answer token, and whether it is the likeliest."""
    logits = losses.answer_logits(model, batch=batch)
    nats = functional.cross_entropy(logits, batch.targets, reduction="none")
    return torch.stack([nats.double(), (logits.argmax(dim=-1) == batch.targets).double()])


def _by_row(rows: Indices, *, values: Sums, num_rows: int) -> Sums:
    return np.bincount(rows, weights=values, minlength=num_rows).astype(np.float64)
