"""Answers to the same prompt are scored with the prompt read once: the choices of a question, for one."""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache

from inference.batches import BatchLimits, pad_left
from inference.model import LoadedModel
from inference.prompts import EncodedRow

Group = Sequence[int]  # places of rows that share their prompt


def group_by_prompt(rows: Sequence[EncodedRow], places: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Places of the rows whose prompt is theirs alone, and the groups of those that share one."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place in places:
        found.setdefault(rows[place].prompt, []).append(place)
    alone = [group[0] for group in found.values() if len(group) == 1]
    return alone, [group for group in found.values() if len(group) > 1]


def batches_of_groups(
    rows: Sequence[EncodedRow], groups: Sequence[Group], *, limits: BatchLimits, num_logits: int
) -> Iterator[list[Group]]:
    """Whole groups, longest first, within what one pass may hold; one that alone exceeds it still runs."""
    batch: list[Group] = []
    num_rows = num_tokens = width = 0
    for group in sorted(groups, key=lambda one: -_width(rows, one)):
        answers = sum(len(rows[place].answer) for place in group)
        rows_then, tokens_then = num_rows + len(group), num_tokens + answers
        width = max(width, _width(rows, group))
        too_much = rows_then * width > limits.max_tokens or tokens_then * num_logits > limits.max_logits
        if batch and (rows_then > limits.max_rows or too_much):
            yield batch
            batch, rows_then, tokens_then, width = [], len(group), answers, _width(rows, group)
        batch.append(group)
        num_rows, num_tokens = rows_then, tokens_then
    if batch:
        yield batch


def states_of_groups(
    loaded: LoadedModel, rows: Sequence[EncodedRow], *, groups: Sequence[Group]
) -> list[torch.Tensor]:
    """The states that speak of each answer token, (tokens, width) a row, in the groups' order."""
    decoder, cache = loaded.model.get_decoder(), DynamicCache()
    ids, mask, positions = pad_left(loaded, [rows[group[0]].prompt for group in groups])
    hidden = decoder(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1:]
    owner = torch.tensor([number for number, group in enumerate(groups) for _ in group], device=loaded.device)
    answers = [rows[place].answer for group in groups for place in group]
    width = max(map(len, answers)) - 1
    first = hidden[owner]
    if width < 1:
        return list(first)
    cache.batch_select_indices(owner)
    ids, answer_mask = _pad_right(loaded, [answer[:-1] for answer in answers], width=width)
    hidden = decoder(
        input_ids=ids,
        attention_mask=torch.cat([mask[owner], answer_mask], dim=1),
        position_ids=positions[owner, -1:] + 1 + torch.arange(width, device=loaded.device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    states = torch.cat([first, hidden], dim=1)
    return [states[row, : len(answer)] for row, answer in enumerate(answers)]


def _width(rows: Sequence[EncodedRow], group: Group) -> int:
    return len(rows[group[0]].prompt) + max(len(rows[place].answer) for place in group)


def _pad_right(
    loaded: LoadedModel, answers: Sequence[Sequence[int]], *, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [[*answer, *[loaded.pad_token_id] * (width - len(answer))] for answer in answers]
    mask = [[1] * len(answer) + [0] * (width - len(answer)) for answer in answers]
    return torch.tensor(ids, device=loaded.device), torch.tensor(mask, device=loaded.device)
