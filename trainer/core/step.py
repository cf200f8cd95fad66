"""One optimizer step: the gradient of a whole batch, in as many parts as memory asks for.

When memory runs out the step is not lost: the batch is split, every part adds its share of the same
gradient (sum of its losses over the answer tokens of the whole batch), and the smaller size is kept for
the steps that follow. Nothing has changed in the model before the optimizer moves it, so the retry is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.config.hyperparameters import Hyperparameters
from trainer.core import loss as losses
from trainer.core.batching import Indices, batch_tokens, split_to_limit
from trainer.core.data import TokenizedDataset
from trainer.core.exchange import Exchange, Replicas, clip_gradients
from trainer.core.loss import Batch
from trainer.core.memory import free_memory, is_out_of_memory, named_out_of_memory
from trainer.core.optimizer import set_learning_rate
from trainer.core.parallel import ALONE, Team
from trainer.core.runtime import generator_states, only_looking, set_generator_states
from trainer.cross_entropy import CrossEntropy
from trainer.errors import Diverged, OutOfMemory


@dataclass(frozen=True)
class StepOutcome:
    """What a step learnt from. `loss_sum` in nats over `num_answers` tokens, before the weights moved."""

    loss_sum: float
    num_answers: int
    num_tokens: int
    grad_norm: float


class StepRunner:
    """Takes optimizer steps on a model, and remembers how much fits in memory.

    `max_tokens` is that limit, in tokens a part with its padding; None until memory ran out once.
    `cross_entropy` is how the loss is computed. With `is_packed` rows are laid end to end, for a model that
    takes segments.
    """

    def __init__(
        self,
        model: Any,
        *,
        optimizer: torch.optim.Optimizer,
        dataset: TokenizedDataset,
        hyperparameters: Hyperparameters,
        device: torch.device,
        dtype: torch.dtype,
        warn: Callable[[str], None],
        max_tokens: int | None = None,
        cross_entropy: CrossEntropy = "auto",
        is_packed: bool = False,
        team: Team = ALONE,
        exchange: Exchange | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.cross_entropy = cross_entropy
        self._model = model
        self._optimizer = optimizer
        self._dataset = dataset
        self._max_grad_norm = hyperparameters.max_grad_norm
        self._device = device
        self._dtype = dtype
        self._is_packed = is_packed
        self._warn = warn
        self._team = team
        self._exchange = exchange or Replicas(model, team=team)

    def take(self, indices: Indices, *, step: int, learning_rate: float) -> StepOutcome:
        """Step `step` on these sequences.

        Raises `Diverged` before a loss or gradient that is not finite reaches the weights, `OutOfMemory`
        where one sequence alone does not fit.
        """
        state = generator_states(self._device)
        while True:
            outcome = self._try_gradient(indices)
            if outcome is not None:
                break
            self._optimizer.zero_grad(set_to_none=True)
            free_memory()
            set_generator_states(state, device=self._device)
        self._check_finite(outcome, step=step)
        set_learning_rate(self._optimizer, value=learning_rate)
        self._move()
        return outcome

    def compute(self, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Call what runs the model, in the arithmetic of a step. Every process must, as often as others."""
        is_half = self._dtype != torch.float32
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=is_half):
            return self._exchange.compute(function)

    def is_finite_on(self, index: int) -> bool:
        """True where the model as it stands gives one sequence a finite loss."""
        batch = losses.collate(self._dataset, indices=np.array([index]), device=self._device)
        with only_looking(self._model):
            value = float(self.compute(lambda: self._loss_of(batch)))
        return math.isfinite(value)

    def _try_gradient(self, indices: Indices) -> StepOutcome | None:
        """Accumulate the gradient; None where memory ran out and the next try is in smaller parts."""
        parts = self._parts(indices)
        own = np.concatenate(parts) if parts else indices[:0]
        counts = (self._dataset.num_answers(own), int(self._dataset.lengths[own].sum()))
        num_answers, num_tokens = map(int, self._team.sums(*counts))
        loss_sum = torch.zeros((), device=self._device)
        too_large: Indices | None = None
        for part, weight in self._in_lockstep(parts, indices=indices):
            part_loss, ran_out = self._try_part(part, weight=weight, num_answers=num_answers)
            if part_loss is None:
                too_large = part if ran_out else None
                break
            loss_sum += part_loss
        if self._must_split(too_large):
            return None
        self._exchange.add_up()
        norm = clip_gradients(self._model, max_norm=self._max_grad_norm)
        loss_value, norm_value = torch.stack([loss_sum, norm.float()]).tolist()
        return StepOutcome(
            loss_sum=self._team.sums(loss_value)[0],
            num_answers=num_answers,
            num_tokens=num_tokens,
            grad_norm=norm_value,
        )

    def _parts(self, indices: Indices) -> list[Indices]:
        """Of this process's rows; none where a batch has fewer rows than there are processes."""
        own = self._team.share(indices)
        if not len(own):
            return []
        lengths = self._dataset.lengths
        return list(
            split_to_limit(own, lengths=lengths, max_tokens=self.max_tokens, is_packed=self._is_packed)
        )

    def _collate(self, indices: Indices) -> Batch:
        collate = losses.pack if self._is_packed else losses.collate
        return collate(self._dataset, indices=indices, device=self._device)

    def _in_lockstep(self, parts: list[Indices], *, indices: Indices) -> Iterator[tuple[Indices, int]]:
        """Parts, each of weight 1, then what others wait for: one row of weight 0."""
        num_parts = self._exchange.num_parts(len(parts))  # agreed before any of them begins
        for part in parts:
            yield part, 1
        for _ in range(num_parts - len(parts)):
            yield indices[-1:], 0

    def _try_part(self, part: Indices, *, weight: int, num_answers: int) -> tuple[torch.Tensor | None, bool]:
        """The part's loss, or None and whether it was this process whose memory ran out."""
        loss_sum = self._unless_out_of_memory(lambda: weight * self._loss_sum(part))
        ran_out = loss_sum is None
        if self._exchange.is_abandoned(is_out_of_memory=ran_out) or loss_sum is None:
            return None, ran_out
        done = self._unless_out_of_memory(lambda: self._backward(loss_sum, num_answers=num_answers))
        return done, done is None

    def _backward(self, loss_sum: torch.Tensor, *, num_answers: int) -> torch.Tensor:
        self._exchange.backward(loss_sum / num_answers)
        return loss_sum.detach()

    def _unless_out_of_memory(self, function: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        try:
            return function()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Left the handler first: its traceback would keep this part's activations alive.
        return None

    def _loss_sum(self, part: Indices) -> torch.Tensor:
        return self.compute(lambda: self._loss_of(self._collate(part)))

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        return losses.answer_loss_sum(self._model, batch=batch, kind=self.cross_entropy)

    def _must_split(self, too_large: Indices | None) -> bool:
        """True where memory ran out in any process; all go on with the lowest limit."""
        own = None if too_large is None else self._lower_limit(too_large)
        limit = self._team.lowest(own)
        if limit is None:
            return False
        self.max_tokens = limit
        if own is None:
            self._warn(f"Memory ran out in another process: parts have at most {limit} tokens from here on.")
        return True

    def _lower_limit(self, part: Indices) -> int:
        lengths = self._dataset.lengths
        num_rows, longest = len(part), int(lengths[part].max())
        if num_rows == 1:
            raise OutOfMemory(
                f"Row {self._dataset.row_numbers[part[0]]} alone ({longest} tokens) does not fit in memory.",
                remedy="Lower max_length, so that such rows are left out, or use a device with more memory.",
            )
        num_tokens = batch_tokens(part, lengths=lengths, is_packed=self._is_packed)
        limit = max(longest, num_tokens // 2) if self._is_packed else (num_rows + 1) // 2 * longest
        self._warn(
            f"Memory ran out at {num_rows} rows of up to {longest} tokens "
            f"({num_tokens} {'packed' if self._is_packed else 'with padding'}): the same step is taken again "
            f"in parts of at most {limit} tokens, and so are the following ones."
        )
        return limit

    def _check_finite(self, outcome: StepOutcome, *, step: int) -> None:
        for name, value in (("loss", outcome.loss_sum), ("gradient norm", outcome.grad_norm)):
            if not math.isfinite(value):
                raise Diverged(
                    f"The {name} of step {step} is {value}: training diverged.",
                    remedy="Lower learning_rate or raise warmup_steps; checkpoints saved before are good.",
                )

    def _move(self) -> None:
        with named_out_of_memory("The optimizer's moments, twice the weights, do not fit in memory."):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
