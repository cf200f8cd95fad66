"""An evaluation of a suite beside lm-evaluation-harness's Hugging Face backend: rows a second, in one run.

For every row both say how likely the expected answer is and what the model answers itself. That is one pass
for tandem; the harness is given a `loglikelihood` and a `generate_until` request a row. Same model and rows,
as many tokens in a batch: what the backend's fixed number of rows takes for the longest one. Prompts have
long-tailed lengths, as few-shot prompts do; replies end where the model ends them, or at a stop string.
Rates are of processor time, which others on the machine hardly change; one thread at work never waits.

Three things decide what a pass saves, so each is varied: how many rows the model gets right (an expected
answer that is right needs no step of its own; such rows expect what the model says), whether all prompts
begin with the same instruction, and the size of the vocabulary.

The order of the two alternates. Before any rate is printed they are compared: log-likelihoods (to 1e-4),
answers, and the accuracy that follows. For that the harness adds up its probabilities in double precision;
how far its own float32 is from that is told beside it, since at a large vocabulary that is further than 1e-4.

    python -m benchmarks.evaluation [--rows 192] [--repetitions 3] [--batch-rows 8] [--vocabulary 151936]
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.support.models import WORDS, talkative_model
from inference.answering import generate
from inference.batches import BatchLimits
from inference.evaluate import evaluate_rows
from inference.model import LoadedModel
from inference.prompts import encode_prompt, encode_row
from registry.records import GenerationSettings
from registry.rows import ChatMessage, ChatRow

VOCABULARIES = (0, 151_936)  # 0: the small model's own
SHARES_RIGHT = (0.0, 0.5, 0.9)
MAX_GAP = 1e-4
SETTINGS = GenerationSettings(max_new_tokens=64, stop=("\n",))
INSTRUCTION = "Read the words below and answer in few letters: "


@dataclass(frozen=True)
class Said:
    """What one side says to a row: log-likelihood (nats) of the expected answer, its own answer."""

    loglikelihood: float
    answer: str
    is_right: bool


@dataclass(frozen=True)
class Case:
    """A model and rows, and the texts that the harness is given for them."""

    loaded: LoadedModel
    rows: list[ChatRow]
    limits: BatchLimits
    batch_rows: int

    def by_tandem(self) -> list[Said]:
        """One pass."""
        found = evaluate_rows(self.loaded, self.rows, settings=SETTINGS, limits=self.limits)
        return [
            Said(-(one.loss or 0.0) * one.num_answer_tokens, one.answer, is_right=one.is_correct)
            for one in found
        ]

    def by_harness(self, *, softmax: torch.dtype | None = None) -> list[Said]:
        """Two requests a row. `softmax` is the precision of its probabilities; its own by default."""
        lm = HFLM(
            pretrained=self.loaded.model,
            tokenizer=self.loaded.tokenizer,
            batch_size=self.batch_rows,
            device=str(self.loaded.device),
            softmax_dtype=softmax,
        )
        encoded = [encode_row(self.loaded, row) for row in self.rows]
        contexts = [self.loaded.tokenizer.decode(row.prompt) for row in encoded]
        # As tokens, since the harness would cut the end of turn otherwise than the chat template does.
        scored = [
            ((context, row.expected), list(one.prompt), list(one.answer))
            for context, row, one in zip(contexts, self.rows, encoded, strict=True)
        ]
        losses = lm._loglikelihood_tokens(scored, disable_tqdm=True)
        how = {"until": list(SETTINGS.stop), "max_gen_toks": SETTINGS.max_new_tokens, "do_sample": False}
        asked = [
            Instance(request_type="generate_until", doc={}, arguments=(context, how), idx=number)
            for number, context in enumerate(contexts)
        ]
        answers = lm.generate_until(asked, disable_tqdm=True)
        return [
            Said(loss, answer, is_right=answer.strip() == row.expected.strip())
            for (loss, _), answer, row in zip(losses, answers, self.rows, strict=True)
        ]


def main() -> int:
    """Print a table; 1 where the two disagree."""
    options = _options()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    print(f"{options.rows} rows, {options.threads} thread(s), n = {options.repetitions}, rows a second")
    is_same = True
    for vocabulary in options.vocabulary or VOCABULARIES:
        with tempfile.TemporaryDirectory() as directory:
            loaded = talkative_model(
                Path(directory), vocabulary=vocabulary or None, num_threads=options.threads
            )
            for beginning in ("", INSTRUCTION):
                for share in SHARES_RIGHT:
                    case = _case(loaded, beginning=beginning, share_right=share, options=options)
                    is_same = _compare(case, is_shared=bool(beginning), options=options) and is_same
    return 0 if is_same else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--vocabulary", type=int, action="append", help="of the model; both by default")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batch-rows", type=int, default=8, help="rows in a batch of the harness")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _case(loaded: LoadedModel, *, beginning: str, share_right: float, options: argparse.Namespace) -> Case:
    rows = _rows(loaded, num_rows=options.rows, beginning=beginning, share_right=share_right)
    encoded = [encode_row(loaded, row) for row in rows]
    most_new = max(SETTINGS.max_new_tokens, *(len(row.answer) for row in encoded))
    tokens = options.batch_rows * (max(len(row.prompt) for row in encoded) + most_new)
    num_vocabulary = loaded.model.get_input_embeddings().num_embeddings
    limits = BatchLimits(max_rows=1024, max_tokens=tokens, max_logits=tokens * num_vocabulary)
    return Case(loaded, rows, limits=limits, batch_rows=options.batch_rows)


def _rows(loaded: LoadedModel, *, num_rows: int, beginning: str, share_right: float) -> list[ChatRow]:
    """Expected is what the model says, with a letter changed at a random place if it is to be wrong."""
    draw = random.Random(0)
    texts = [_text(draw, beginning=beginning) for _ in range(num_rows)]
    prompts = [encode_prompt(loaded, _asked(text)) for text in texts]
    replies = generate(loaded, prompts, settings=SETTINGS)
    expected = [
        reply.text
        if draw.random() < share_right and _is_plain(reply.text, loaded=loaded)
        else _changed(reply.text, draw=draw)
        for reply in replies
    ]
    return [
        ChatRow(messages=(*_asked(text), ChatMessage(role="assistant", content=answer)))
        for text, answer in zip(texts, expected, strict=True)
    ]


def _text(draw: random.Random, *, beginning: str) -> str:
    length = min(240, int(6 + draw.paretovariate(1.1) * 10))
    return beginning + " ".join(draw.choices(WORDS, k=max(1, length // 5))) + f" {draw.randint(0, 9999)}"


def _asked(text: str) -> tuple[ChatMessage]:
    return (ChatMessage(role="user", content=text),)


def _is_plain(text: str, *, loaded: LoadedModel) -> bool:
    return bool(text.strip()) and text.strip() == _without_special(text, loaded=loaded)


def _without_special(text: str, *, loaded: LoadedModel) -> str:
    """As the harness shows answers."""
    for token in loaded.tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text.strip()


def _changed(text: str, *, draw: random.Random) -> str:
    letters = list(text.strip() or "a")
    place = draw.randrange(len(letters))
    letters[place] = "x" if letters[place] != "x" else "y"
    return "".join(letters)


def _compare(case: Case, *, is_shared: bool, options: argparse.Namespace) -> bool:
    """Also the warm-up of both."""
    mine, theirs, rounded = case.by_tandem(), case.by_harness(softmax=torch.float64), case.by_harness()
    gap, own_gap = _gap(mine, theirs), _gap(rounded, theirs)
    num_other = sum(
        _without_special(one.answer, loaded=case.loaded) != other.answer.strip()
        for one, other in zip(mine, theirs, strict=True)
    )
    accuracies = [statistics.mean(one.is_right for one in side) for side in (mine, theirs)]
    num_vocabulary = case.loaded.model.get_input_embeddings().num_embeddings
    what = f"vocabulary {num_vocabulary:6}, {'one instruction' if is_shared else 'texts of their own'}"
    if gap > MAX_GAP or num_other or accuracies[0] != accuracies[1]:
        print(f"{what}: the two disagree ({gap:.1e}, {num_other} answers), so the rates mean nothing")
        return False
    seconds = _seconds({"tandem": case.by_tandem, "harness": case.by_harness}, num=options.repetitions)
    rates = {who: [len(case.rows) / spent for spent in found] for who, found in seconds.items()}
    ratios = sorted(ours / other for ours, other in zip(rates["tandem"], rates["harness"], strict=True))
    told = ", ".join(
        f"{who} {statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"
        for who, found in rates.items()
    )
    print(
        f"{what}, {accuracies[0]:4.0%} right: {told}, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
        f"log-likelihoods within {gap:.1e} (its own float32: {own_gap:.1e}), answers and accuracy equal",
        flush=True,
    )
    return True


def _gap(left: Sequence[Said], right: Sequence[Said]) -> float:
    return max(abs(one.loglikelihood - other.loglikelihood) for one, other in zip(left, right, strict=True))


def _seconds(runs: dict[str, Callable[[], Sequence[Said]]], *, num: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {who: [] for who in runs}
    for repetition in range(num):
        for who, run in list(runs.items())[:: 1 if repetition % 2 == 0 else -1]:
            began = time.process_time()
            run()
            found[who].append(time.process_time() - began)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
