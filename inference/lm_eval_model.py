"""tandem's own inference behind lm-evaluation-harness: its tasks, our batches.

Needs the extra `lm-eval`. Log-likelihoods and greedy answers are those of the harness's own Hugging Face
backend; logits are made for answers alone, and rows are cut into batches by their tokens.
"""

# mypy: disable-error-code="misc,no-untyped-call"
# The harness is typed in part.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from inference.answering import generate
from inference.batches import DEFAULT_LIMITS, BatchLimits
from inference.errors import ModelError
from inference.model import LoadedModel, load_model
from inference.prompts import EncodedRow
from inference.scoring import score
from registry.records import GenerationSettings

DEFAULT_NEW_TOKENS = 256
TokenRequest = tuple[Any, Sequence[int], Sequence[int]]


class TandemLM(TemplateLM):
    """A checkpoint as the harness sees one. `loaded` may be given where it is loaded already.

    The harness's own command names batch sizes; batches are cut by `limits` instead.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str | Path = "",
        *,
        loaded: LoadedModel | None = None,
        device: str = "auto",
        num_threads: int | None = None,
        limits: BatchLimits = DEFAULT_LIMITS,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size
        self.loaded = loaded or load_model(Path(pretrained), device=device, num_threads=num_threads)
        self.limits = limits
        self.tokenizer = self.loaded.tokenizer

    @property
    def eot_token_id(self) -> int:
        """Ends a text; stands before one that has nothing before it."""
        end: int | None = self.tokenizer.eos_token_id
        return self.loaded.end_of_turn_id if end is None else end

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in the harness's own cache."""
        return str(self.loaded.directory)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_named: Any) -> list[int]:
        """Token ids, without special ones unless they are asked for."""
        return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the model was trained to read it."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            enable_thinking=False,
        )
        return text

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of the model's length, each token once."""
        del disable_tqdm
        windows = [self._windows(request.args[0]) for request in requests]
        rows = [window for mine in windows for window in mine]
        found = iter(self._loglikelihood_tokens([(None, before, after) for before, after in rows]))
        return [sum(next(found)[0] for _ in mine) for mine in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Go on from each context until one of its stop strings, the end of a text or the token limit."""
        del disable_tqdm
        groups: dict[GenerationSettings, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(place)
        replies: dict[int, str] = {}
        for settings, places in groups.items():
            room = self.loaded.max_positions - settings.max_new_tokens
            prompts = [self.tok_encode(requests[place].args[0])[-room:] for place in places]
            found = generate(self.loaded, prompts, settings=settings, limits=self.limits)
            texts = (self._text(reply.token_ids, stop=settings.stop) for reply in found)
            replies |= dict(zip(places, texts, strict=True))
        return [replies[place] for place in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_named: Any
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities (nats) of each continuation, and whether greedy decoding would give it."""
        del disable_tqdm
        rows = [self._row(before, after) for _, before, after in requests]
        found = score(self.loaded, rows, limits=self.limits)
        return [
            (self._known(one.loss, problem=one.problem) * -one.num_tokens, one.is_greedy) for one in found
        ]

    def _text(self, token_ids: Sequence[int], *, stop: Sequence[str]) -> str:
        """Without special tokens, as the harness shows answers; cut at the first stop string."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))]

    def _row(self, before: Sequence[int], after: Sequence[int]) -> EncodedRow:
        """The end of what does not fit, as the harness cuts it."""
        whole = [*before, *after][-self.loaded.max_positions :]
        return EncodedRow(prompt=tuple(whole[: -len(after)]), answer=tuple(after))

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.loaded.max_positions - 1,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    @staticmethod
    def _known(loss: float | None, *, problem: str) -> float:
        if loss is None:
            raise ModelError(f"A log-likelihood is unknown: {problem}.")
        return loss

    @staticmethod
    def _settings(asked: dict[str, Any]) -> GenerationSettings:
        until = asked.get("until") or ()
        is_drawn = bool(asked.get("do_sample", asked.get("temperature", 0) > 0))
        return GenerationSettings(
            max_new_tokens=int(asked.get("max_gen_toks", DEFAULT_NEW_TOKENS)),
            temperature=float(asked.get("temperature", 1.0)) if is_drawn else 0.0,
            stop=(until,) if isinstance(until, str) else tuple(until),
        )
