"""The decode loop: one token a step for every row still running, with a key-value cache."""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from inference.batches import pad_left
from inference.errors import OutOfMemory
from inference.model import LoadedModel
from inference.penalties import penalised, penalties_for, told
from inference.sampling import choose_tokens, row_generator, tempered_logprobs
from registry.records import GenerationSettings


@dataclass(frozen=True)
class Step:
    """A row's next token and the log-probability the model gave it; NaN where the logits were not finite.

    `tempered` are its log-probabilities at the model's `confidence_temperatures`.
    """

    row: int
    token_id: int
    logprob: float
    tempered: tuple[float, ...] = ()


class DecodeLoop:
    """Runs a batch of prompts. Rows are dropped as they end, and the rest go on in a smaller batch."""

    def __init__(
        self, loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, settings: GenerationSettings
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._generators = [row_generator(settings.seed, prompt=prompt) for prompt in prompts]
        self._penalties = [penalties_for(loaded, prompt) for prompt in prompts]
        self._cache = DynamicCache(config=loaded.model.config)
        self._input_ids, self._mask, self._positions = pad_left(loaded, prompts)
        self.rows = list(range(len(prompts)))

    def step(self) -> list[Step]:
        """Give every running row its next token. Raises `OutOfMemory`."""
        try:
            with torch.inference_mode():
                tokens, logprobs, tempered = self._next_tokens()
                self._advance(tokens)
                steps = zip(self.rows, tokens.tolist(), logprobs.tolist(), tempered, strict=True)
                return [Step(*step) for step in steps]
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{tuple(self._mask.shape)} tokens exceed the memory of {self._loaded.device}.",
                remedy="Lower the batch limits or max_new_tokens, or free the device.",
            ) from error

    def keep(self, rows: Collection[int]) -> None:
        """Drop every row but these from the batch and its cache."""
        places = [place for place, row in enumerate(self.rows) if row in rows]
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        self._generators = [self._generators[place] for place in places]
        self._penalties = [self._penalties[place] for place in places]
        if not places:
            return
        with torch.inference_mode():
            index = torch.tensor(places, device=self._loaded.device)
            self._cache.batch_select_indices(index)
            self._input_ids, self._mask = self._input_ids[index], self._mask[index]
            self._positions = self._positions[index]

    def _next_tokens(self) -> tuple[torch.Tensor, torch.Tensor, list[tuple[float, ...]]]:
        logits = (
            self._loaded.model(
                input_ids=self._input_ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        pulled = penalised(logits, penalties=self._penalties)
        tokens, _ = choose_tokens(pulled, settings=self._settings, generators=self._generators)
        told(tokens, penalties=self._penalties)
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        temperatures = self._loaded.confidence_temperatures
        return tokens, logprobs, tempered_logprobs(logits, tokens=tokens, temperatures=temperatures)

    def _advance(self, tokens: torch.Tensor) -> None:
        self._input_ids = tokens[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
