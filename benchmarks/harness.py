"""Our inference beside lm-evaluation-harness's own Hugging Face backend: same model, same requests, one run.

Multiple choice (log-likelihoods of four choices a question) and free answers, over rows of long-tailed
lengths, at a small vocabulary and at Qwen3's. Both may hold the same number of tokens and of logits in a
batch: what the backend's fixed number of rows takes for the longest ones. The order of the two alternates;
results are compared before any number is printed, the backend's with its probabilities added up in double
precision: its float32 is further than 1e-4 from that at a large vocabulary.

    python -m benchmarks.harness [--questions 48] [--repetitions 3] [--threads 1]
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.support.models import WORDS, talkative_model
from inference.batches import BatchLimits
from inference.lm_eval_model import TandemLM
from inference.model import LoadedModel

VOCABULARIES = (None, 151_936)
BATCH_ROWS = 8
NEW_TOKENS = 16

Run = Callable[[Any, list[Instance]], list[Any]]


def main() -> int:
    """Print a table; 1 where the two disagree."""
    options = _options()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    print(f"{options.questions} questions, {options.threads} thread(s), n = {options.repetitions}")
    is_same = True
    for vocabulary in VOCABULARIES:
        with tempfile.TemporaryDirectory() as directory:
            loaded = talkative_model(Path(directory), vocabulary=vocabulary, num_threads=options.threads)
            is_same = _compare(loaded, options=options) and is_same
    return 0 if is_same else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _compare(loaded: LoadedModel, *, options: argparse.Namespace) -> bool:
    choices, answers = _requests(options.questions)
    num_vocabulary = loaded.model.get_input_embeddings().num_embeddings
    longest = max(len(loaded.tokenizer("".join(one.args)).input_ids) for one in choices)
    tokens = BATCH_ROWS * longest
    limits = BatchLimits(max_rows=1024, max_tokens=tokens, max_logits=tokens * num_vocabulary)
    ours = TandemLM(loaded=loaded, limits=limits)
    theirs, exact = (
        HFLM(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            batch_size=BATCH_ROWS,
            device="cpu",
            softmax_dtype=softmax,
        )
        for softmax in (None, torch.float64)
    )
    print(f"\nvocabulary {num_vocabulary}, longest row {longest} tokens, {tokens} tokens a batch")
    runs: list[tuple[str, list[Instance], Run]] = [
        ("multiple choice", choices, lambda lm, asked: list(lm.loglikelihood(asked, disable_tqdm=True))),
        ("free answers", answers, lambda lm, asked: list(lm.generate_until(asked, disable_tqdm=True))),
    ]
    lines = [
        _line(name, asked=asked, run=run, models=(ours, theirs, exact), options=options)
        for name, asked, run in runs
    ]
    return all(lines)


def _line(
    name: str,
    *,
    asked: list[Instance],
    run: Run,
    models: tuple[TandemLM, HFLM, HFLM],
    options: argparse.Namespace,
) -> bool:
    ours, theirs, exact = models
    mine, other = run(ours, asked), run(exact, asked)
    if not _agree(mine, other):
        print(f"{name}: the two disagree, so the rates mean nothing")
        return False
    seconds: dict[str, list[float]] = {"tandem": [], "harness": []}
    for repetition in range(options.repetitions):
        pair = [("tandem", ours), ("harness", theirs)]
        for who, lm in pair if repetition % 2 == 0 else pair[::-1]:
            began = time.perf_counter()
            run(lm, asked)
            seconds[who].append(time.perf_counter() - began)
    rates = {who: [options.questions / spent for spent in found] for who, found in seconds.items()}
    told = "   ".join(
        f"{who} {statistics.median(found):7.2f} ({min(found):.2f} to {max(found):.2f})"
        for who, found in rates.items()
    )
    ratio = statistics.median(rates["tandem"]) / statistics.median(rates["harness"])
    print(f"  {name:16} questions/s: {told}   ratio {ratio:.2f}   {_agreement(mine, other)}")
    return True


def _agree(mine: list[Any], other: list[Any]) -> bool:
    if isinstance(mine[0], str):
        return mine == other
    return all(
        abs(left[0] - right[0]) <= 1e-4 and left[1] == bool(right[1])
        for left, right in zip(mine, other, strict=True)
    )


def _agreement(mine: list[Any], other: list[Any]) -> str:
    if isinstance(mine[0], str):
        return "answers equal"
    gap = max(abs(left[0] - right[0]) for left, right in zip(mine, other, strict=True))
    return f"log-likelihoods within {gap:.1e}"


def _requests(num_questions: int) -> tuple[list[Instance], list[Instance]]:
    draw = random.Random(0)
    choices, answers = [], []
    for number in range(num_questions):
        # Long-tailed, as few-shot prompts are.
        length = min(240, int(6 + draw.paretovariate(1.1) * 10))
        context = "Question: " + " ".join(draw.choices(WORDS, k=length // 5)) + "? Answer:"
        for _ in range(4):
            choice = " " + " ".join(draw.choices(WORDS, k=2))
            choices.append(_instance("loglikelihood", (context, choice), number=number))
        how = {"until": ["\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
        answers.append(_instance("generate_until", (context, how), number=number))
    return choices, answers


def _instance(kind: Any, arguments: tuple[Any, ...], *, number: int) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=number)


if __name__ == "__main__":
    raise SystemExit(main())
