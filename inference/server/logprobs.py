"""Log-probabilities as OpenAI's clients read them: of a chat's tokens, and of a completion's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from inference.continuous import NextToken
from inference.detokenize import decode
from inference.model import TextModel

# JSON has no infinity: OpenAI's own floor for what the model holds impossible.
LOWEST = -9999.0


def chat_logprobs(tokens: Sequence[NextToken], *, loaded: TextModel) -> dict[str, Any]:
    """`choices[].logprobs` of a chat: each token of the text, and the likeliest in its place."""
    return {
        "content": [
            _entry(token.token_id, token.logprob, loaded=loaded)
            | {
                "top_logprobs": [
                    _entry(candidate.token_id, candidate.logprob, loaded=loaded)
                    for candidate in token.likeliest
                ]
            }
            for token in _of_text(tokens, loaded=loaded)
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[NextToken], *, loaded: TextModel) -> dict[str, Any]:
    """`choices[].logprobs` of a completion: parallel lists, offsets in characters of the text."""
    shown = _of_text(tokens, loaded=loaded)
    texts = [decode(loaded.tokenizer, [token.token_id]) for token in shown]
    return {
        "tokens": texts,
        "token_logprobs": [_finite(token.logprob) for token in shown],
        "top_logprobs": [
            {
                decode(loaded.tokenizer, [candidate.token_id]): _finite(candidate.logprob)
                for candidate in token.likeliest
            }
            for token in shown
        ],
        "text_offset": [sum(map(len, texts[:place])) for place in range(len(texts))],
    }


def _of_text(tokens: Sequence[NextToken], *, loaded: TextModel) -> list[NextToken]:
    """Without the token that ended the turn, which is no part of the text."""
    return [token for token in tokens if token.token_id not in loaded.stop_token_ids]


def _entry(token_id: int, logprob: float, *, loaded: TextModel) -> dict[str, Any]:
    text = decode(loaded.tokenizer, [token_id])
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST
