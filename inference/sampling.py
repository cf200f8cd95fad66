"""Choose the next token of each row: the likeliest, or one drawn with the row's own generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256

import torch

from registry.records import GenerationSettings

# Below it float32 overflows, and logits that differ by a thousandth are drawn once in 20 000 times.
MIN_TEMPERATURE = 1e-4
BLOCK_LOGITS = 1 << 18


def choose_tokens(
    logits: torch.Tensor, *, settings: GenerationSettings, generators: Sequence[torch.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows,) and the log-probability (rows,) the model gives each, from logits (rows, vocabulary).

    The log-probability is the model's own, before temperature and top_p; NaN where the logits are not
    finite. With temperature, a row's choice depends on its generator alone, never on its neighbours.
    """
    if is_drawn(settings):
        tokens = _draw(logits, settings=settings, generators=generators)
    else:
        tokens = logits.argmax(dim=-1)
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return tokens, chosen - logits.logsumexp(dim=-1)


def is_drawn(settings: GenerationSettings) -> bool:
    """False for the likeliest token, and for temperatures that float32 cannot tell from 0."""
    return settings.temperature >= MIN_TEMPERATURE


def tempered_logprobs(
    logits: torch.Tensor, *, tokens: torch.Tensor, temperatures: Sequence[float]
) -> torch.Tensor:
    """The log-probability of each row's token with its logits divided by each temperature.

    (rows, temperatures), from logits (rows, vocabulary) and tokens (rows,); a few rows at a time, so that
    what is at work stays in a processor's cache and little memory is held.
    """
    if not temperatures or not len(tokens):
        return logits.new_empty(len(tokens), len(temperatures))
    num_rows = max(1, BLOCK_LOGITS // logits.shape[1])
    blocks = zip(torch.split(logits, num_rows), torch.split(tokens, num_rows), strict=True)
    return torch.cat([_tempered(part, tokens=chosen, temperatures=temperatures) for part, chosen in blocks])


def row_generator(seed: int, *, prompt: Sequence[int]) -> torch.Generator:
    """A generator for one row: the same for the same seed and prompt, whatever else is in the batch."""
    digest = sha256(f"{seed}:{','.join(map(str, prompt))}".encode()).digest()
    generator = torch.Generator(device="cpu")
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator


def _tempered(logits: torch.Tensor, *, tokens: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """exp(x / T) is the square of exp(x / 2T), which costs a tenth of another exponential."""
    below = logits - logits.max(dim=-1, keepdim=True).values
    chosen = below.gather(1, tokens[:, None])[:, 0]
    columns, powers = {}, dict[float, torch.Tensor]()
    for temperature in sorted(set(temperatures), reverse=True):
        double = next((one for one in powers if math.isclose(one, 2 * temperature)), None)
        power = (below / temperature).exp_() if double is None else powers.pop(double).square_()
        columns[temperature] = chosen / temperature - power.sum(dim=-1).log()
        powers[temperature] = power
    return torch.stack([columns[temperature] for temperature in temperatures], dim=1)


def _draw(
    logits: torch.Tensor, *, settings: GenerationSettings, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    # Non-finite rows must not stop the others: they get a token, and a NaN log-probability with it.
    safe = torch.nan_to_num(logits.float(), nan=0.0, posinf=0.0)
    scaled = (safe - safe.max(dim=-1, keepdim=True).values) / settings.temperature
    weights = _nucleus(scaled.softmax(dim=-1), top_p=settings.top_p).cpu()
    drawn = [
        torch.multinomial(row, 1, generator=generator)
        for row, generator in zip(weights, generators, strict=True)
    ]
    return torch.cat(drawn).to(logits.device)


def _nucleus(probabilities: torch.Tensor, *, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of tokens that holds `top_p` (Holtzman et al. 2020, section 3.1)."""
    if top_p >= 1:
        return probabilities
    ordered, places = probabilities.sort(dim=-1, descending=True)
    is_outside = ordered.cumsum(dim=-1) - ordered >= top_p
    is_outside[..., 0] = False  # the likeliest is always inside, however small top_p is
    return probabilities.masked_fill(is_outside.scatter(1, places, is_outside), 0.0)
