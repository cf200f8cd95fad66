"""A run in progress: where it stands, its sums, and how it is saved and restored."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.config.job import JobConfig
from trainer.core.adapters import merged_state
from trainer.core.batching import BatchPlan
from trainer.core.checkpoints import (
    Checkpoint,
    TrainingState,
    checkpoint_steps,
    load_tensors,
    save_checkpoint,
)
from trainer.core.cross_entropy import kind_of_run
from trainer.core.data import TokenizedDataset
from trainer.core.exchange import parted_like, put_together
from trainer.core.memory import is_out_of_memory
from trainer.core.models import copied, has_finite_weights
from trainer.core.optimizer import learning_rate_at, optimizer_tensors, restore_optimizer
from trainer.core.parallel import ALONE, Team
from trainer.core.runtime import random_state, set_random_state
from trainer.core.step import StepOutcome, StepRunner
from trainer.core.trace import RowTrace
from trainer.errors import Diverged, ModelError

RECENT_STEPS = 50
WEIGHTS_PREFIX = "weights."


class UsedRows:
    """Counts the rows that the first steps of a plan use: one is used as soon as a sequence of it is."""

    def __init__(self, dataset: TokenizedDataset, *, plan: BatchPlan) -> None:
        self._dataset = dataset
        self._plan = plan
        self._is_used = np.zeros(int(dataset.row_numbers[-1]) + 1, dtype=np.bool_)
        self._num_steps = 0

    def num_unused(self, step: int) -> int:
        """Rows that no step before `step` uses. Steps are asked about in rising order."""
        if step >= self._plan.steps_per_epoch:
            return 0
        for earlier in range(self._num_steps, step):
            self._is_used[self._dataset.row_numbers[self._plan.batch(earlier)]] = True
        self._num_steps = max(self._num_steps, step)
        return self._dataset.num_rows - int(self._is_used.sum())


def run_digest(
    config: JobConfig, *, data_digest: str, parent_sha256: str, dtype: torch.dtype, is_packed: bool = False
) -> str:
    """Hex sha256 of all that decides a run's weights: only a run with the same one may be continued.

    What changes them by rounding alone is no part of it: device, threads and the number of processes, so
    that a run may go on where other hardware is free; so are the parts in which a step is taken.
    """
    parts = {
        "hyperparameters": config.hyperparameters.as_json(),
        "data": data_digest,
        "parent": parent_sha256,
        "dtype": str(dtype),
        **({"batching": "packed"} if is_packed else {}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(eq=False)
class Run:
    """Everything that changes while a job is trained. `step` counts the steps taken."""

    config: JobConfig
    digest: str
    model: Any
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    runner: StepRunner
    dataset: TokenizedDataset
    plan: BatchPlan
    device: torch.device
    dtype: torch.dtype
    step: int = 0
    num_tokens: int = 0
    num_answers: int = 0
    loss_sum: float = 0.0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    saved: Checkpoint | None = None
    trace: RowTrace | None = None
    team: Team = ALONE

    def __post_init__(self) -> None:
        """Nothing is used yet."""
        self.used = UsedRows(self.dataset, plan=self.plan)

    @property
    def is_done(self) -> bool:
        """True once every planned step was taken."""
        return self.step >= self.plan.num_steps

    @cached_property
    def checkpoint_steps(self) -> frozenset[int]:
        """Those that the configuration names."""
        output = self.config.output
        return checkpoint_steps(
            self.plan.num_steps, every=output.checkpoint_every_steps, num_checkpoints=output.num_checkpoints
        )

    @property
    def is_checkpoint_due(self) -> bool:
        """True right after one of them."""
        return self.step in self.checkpoint_steps

    @property
    def num_unused_rows(self) -> int:
        """Rows of the data that no step has used yet: counted from the plan, so a resumed run agrees."""
        return self.used.num_unused(self.step)

    @property
    def mean_loss(self) -> float | None:
        """Over the whole job, in nats an answer token; None before the first step."""
        return self.loss_sum / self.num_answers if self.num_answers else None

    @property
    def recent_loss(self) -> float | None:
        """The same over the last steps."""
        num_answers = sum(count for _, count in self.recent)
        return sum(loss for loss, _ in self.recent) / num_answers if num_answers else None

    def learning_rate_at(self, step: int) -> float:
        """Of step `step`, counted from 1."""
        return learning_rate_at(
            step - 1, num_steps=self.plan.num_steps, hyperparameters=self.config.hyperparameters
        )

    def advance(self) -> StepOutcome:
        """Take the next step."""
        outcome = self.runner.take(
            self.plan.batch(self.step),
            step=self.step + 1,
            learning_rate=self.learning_rate_at(self.step + 1),
        )
        self.step += 1
        self.num_tokens += outcome.num_tokens
        self.num_answers += outcome.num_answers
        self.loss_sum += outcome.loss_sum
        self.recent.append((outcome.loss_sum, outcome.num_answers))
        if self.trace is not None:
            rows = self.dataset.row_numbers[self.plan.batch(self.step - 1)]
            self.trace.taken(self.step, rows=tuple(rows.tolist()))
        return outcome

    def save(self, *, created_at: datetime) -> Checkpoint:
        """Write a checkpoint of the weights as they stand; `Diverged` where they are no good."""
        self._check_weights()
        self.saved = self.team.from_first(self._writer(created_at=created_at, copies=False))
        return self.saved

    def snapshot(self, *, created_at: datetime) -> Callable[[], Checkpoint] | None:
        """What writes the same checkpoint later, in any thread, while steps go on; `Diverged` as for `save`.

        It holds a copy of weights and moments. None where memory does not suffice for one.
        """
        self._check_weights()
        try:
            return self._writer(created_at=created_at, copies=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint of this run stands. The model holds its weights already."""
        # A process that keeps a part of them need not hold all on its device.
        home = self.device if self.team.size == 1 else torch.device("cpu")
        state, tensors = checkpoint.state, load_tensors(checkpoint, device=home)
        try:
            restore_optimizer(self.optimizer, model=self.model, tensors=tensors)
            self._restore_weights(tensors)
        except KeyError as error:
            raise ModelError(
                f"{checkpoint.path}: its training state has no {error.args[0]}.",
                remedy="Remove this checkpoint; the run then goes on from the one before.",
            ) from error
        limits = [limit for limit in (state.max_tokens, self.runner.max_tokens) if limit is not None]
        self.runner.max_tokens = min(limits, default=None)
        self.runner.cross_entropy = kind_of_run(
            checkpoint.manifest.config, wished=self.runner.cross_entropy, device=self.device
        )
        self.step, self.num_tokens, self.num_answers = state.step, state.num_tokens, state.num_answers
        self.loss_sum, self.saved = state.loss_sum, checkpoint
        self.recent.extend(state.losses)
        random_states = (state.random_state, *state.other_random_states)
        if self.team.rank < len(random_states):
            set_random_state(random_states[self.team.rank], device=self.device)

    def _writer(self, *, created_at: datetime, copies: bool) -> Callable[[], Checkpoint]:
        """Everything is taken now, the tensors themselves or copies; calling it writes."""
        is_first, trace, step = self.team.is_first, self.trace, self.step
        weights = self._weights(copies=copies)
        tensors = put_together(self._tensors(), keep=is_first)
        if copies:
            tensors = copied(tensors)
        state, manifest = self._state(), self._manifest(created_at)

        def write() -> Checkpoint:
            written = save_checkpoint(
                self.config.output.checkpoints_dir,
                model=self.model,
                weights=weights,
                tokenizer=self.tokenizer,
                dtype=self.dtype,
                tensors=tensors,
                state=state,
                manifest=manifest,
            )
            if trace is not None:
                trace.saved(step)
            return written

        return write

    def _weights(self, *, copies: bool) -> dict[str, Tensor]:
        """As they are saved. What adapters change is new; the rest are the model's own unless `copies`."""
        weights = put_together(self.model.state_dict(keep_vars=True), keep=self.team.is_first)
        if not self.team.is_first:  # it writes nothing
            return weights
        if self.config.hyperparameters.adapter is not None:
            return merged_state(self.model, state=weights, dtype=self.dtype, copies=copies)
        return copied(weights, dtype=self.dtype) if copies else weights

    def _manifest(self, created_at: datetime) -> dict[str, Any]:
        config = self.config
        return {
            "job_id": config.job_id,
            "parent_checkpoint_id": config.parent_checkpoint_id,
            "dataset_id": config.data.dataset_id,
            "num_steps": self.plan.num_steps,
            "is_final": self.is_done,
            "train_loss": self.recent_loss,
            "config": config.model_dump(mode="json"),
            "code_version": version("tandem"),
            "created_at": created_at,
        }

    def _check_weights(self) -> None:
        """The loss was finite before the last update; see that the model still is after it."""
        first = int(self.plan.batch(self.step - 1)[0])
        # Every process asks both: computing a loss may need all of them.
        are_good = (has_finite_weights(self.model), self.runner.is_finite_on(first))
        if not self.team.highest(int(not all(are_good))):
            return
        raise Diverged(
            f"After step {self.step} the model's weights no longer give a finite loss: training diverged.",
            remedy="Lower learning_rate or raise warmup_steps; checkpoints saved before are good.",
        )

    def _state(self) -> TrainingState:
        own, *others = self.team.from_each(random_state(self.device))
        return TrainingState(
            step=self.step,
            run_digest=self.digest,
            random_state=own,
            other_random_states=tuple(others),
            num_tokens=self.num_tokens,
            num_answers=self.num_answers,
            loss_sum=self.loss_sum,
            losses=tuple(self.recent),
            max_tokens=self.runner.max_tokens,
        )

    def _tensors(self) -> dict[str, Tensor]:
        tensors = optimizer_tensors(self.optimizer, model=self.model)
        return {**tensors, **{f"{WEIGHTS_PREFIX}{name}": value for name, value in self._lost().items()}}

    def _lost(self) -> dict[str, Tensor]:
        """What was learnt and cannot be had back from a checkpoint's model: it is rounded, or merged."""
        if self.dtype == torch.float32 and self.config.hyperparameters.adapter is None:
            return {}
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _restore_weights(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._lost().items():
                parameter.copy_(parted_like(tensors[f"{WEIGHTS_PREFIX}{name}"], parameter=parameter))
