"""Tokens of a large file: tokenised once, opened again, beside Python lists and Arrow, in one run.

Each contender works in a process of its own. What it holds is anonymous memory by the kernel's account
(`/proc/self/smaps_rollup`), above that of the same process with its libraries and tokenizer loaded: pages of
mapped files are left out, since the system takes them back when it needs room. Every contender tokenises the
same rows with the same encoder; then each, in a fresh process where its form allows that, plans an epoch and
forms batches. Rows are lines of invented words with log-normal lengths, tokens those of a byte-pair
vocabulary of 8 000 trained on them.

    python -m benchmarks.data [--rows 20000] [--bytes-per-row 2900] [--peer-rows 5000]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from registry.rows import read_rows
from trainer.core.batching import BatchPlan
from trainer.core.chat import ChatEncoder, Example
from trainer.core.data import TokenizedDataset
from trainer.core.loss import collate
from trainer.core.models import load_tokenizer
from trainer.core.token_cache import TokenCache

MAX_LENGTH = 4096
TOKENS_PER_BATCH = 8192
NUM_BATCHES = 200
VOCABULARY = 8000
NUM_WORDS = 20_000
SAMPLE_ROWS = 2000
NUM_OPENINGS = 3
MEGABYTE = 1e6

Report = dict[str, float]


def main() -> None:
    """Print one line a contender."""
    options = _options()
    if options.contender:
        print(json.dumps(CONTENDERS[options.contender](options.directory, options.rows)))
        return
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name:
        directory = Path(name)
        num_bytes = write_rows(directory, num_rows=options.rows, bytes_per_row=options.bytes_per_row)
        print(f"{options.rows} rows, {num_bytes / MEGABYTE:.0f} MB of JSON lines")
        made = _run("tandem: tokenise", directory, rows=options.rows)
        _print("tandem, tokenised", made, rows=options.rows)
        opened = [_run("tandem: open", directory, rows=options.rows) for _ in range(NUM_OPENINGS)]
        _print("tandem, opened", _median(opened), rows=options.rows, n=NUM_OPENINGS)
        for peer in ("arrow", "lists"):
            rows = min(options.rows, options.peer_rows)
            _print(peer, _run(peer, directory, rows=rows), rows=rows)


def write_rows(directory: Path, *, num_rows: int, bytes_per_row: int) -> int:
    """Write `rows.jsonl` and a tokenizer trained on its beginning; the size of the file in bytes."""
    generator = random.Random(0)
    letters = "etaoinshrdlcumwfgypbvk"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(NUM_WORDS)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, NUM_WORDS + 1)))  # Zipf's law
    path = directory / "rows.jsonl"
    with path.open("w") as stream:
        for _ in range(num_rows):
            num_words = max(4, int(generator.lognormvariate(0, 0.6) * bytes_per_row / 7.8))
            text = generator.choices(words, cum_weights=weights, k=num_words)
            cut = num_words // 2
            row = {"prompt": " ".join(text[:cut]), "completion": " ".join(text[cut:])}
            stream.write(json.dumps(row) + "\n")
    _train_tokenizer(directory, path=path)
    return path.stat().st_size


def tokenise(directory: Path, num_rows: int) -> Report:
    """Into the cache, by `TokenCache.open`; memory is the most that was seen while rows were written."""
    encoder = _encoder(directory)
    before = anonymous_bytes()
    seen: list[int] = []
    encode = encoder.encode

    def watched(*arguments: Any, **options: Any) -> Iterator[list[Example]]:
        yield from encode(*arguments, **options)
        seen.append(anonymous_bytes())

    encoder.encode = watched  # type: ignore[method-assign]
    started = time.perf_counter()
    dataset = _cached(directory, encoder=encoder)
    seconds = time.perf_counter() - started
    assert dataset.num_rows + dataset.num_dropped_rows == num_rows
    return {
        "seconds": seconds,
        "anonymous_bytes": max(seen) - before,
        "num_tokens": len(dataset.tokens),
    }


def open_again(directory: Path, num_rows: int) -> Report:
    """From the cache, every byte checked, then an epoch planned and batches formed."""
    encoder = _encoder(directory)
    _ = encoder.identity
    before = anonymous_bytes()
    started = time.perf_counter()
    dataset = _cached(directory, encoder=encoder)
    seconds = time.perf_counter() - started
    assert dataset.num_rows + dataset.num_dropped_rows == num_rows
    started = time.perf_counter()
    first, peak = _use(dataset)
    return {
        "seconds": seconds,
        "first_batch_seconds": first - started,
        "anonymous_bytes": peak - before,
        "num_tokens": len(dataset.tokens),
    }


def python_lists(directory: Path, num_rows: int) -> Report:
    """Two lists a row, as `datasets.map` gives them and a collator takes them."""
    encoder = _encoder(directory)
    before = anonymous_bytes()
    started = time.perf_counter()
    rows = [
        {"input_ids": list(example.tokens), "labels": list(_labels(example))}
        for example in _examples(directory, encoder=encoder, num_rows=num_rows)
    ]
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "anonymous_bytes": anonymous_bytes() - before,
        "num_tokens": sum(len(row["input_ids"]) for row in rows),
    }


def arrow(directory: Path, num_rows: int) -> Report:
    """Written as an Arrow file in blocks, mapped, and lengths taken for a plan, as `datasets` does it."""
    encoder = _encoder(directory)
    before = anonymous_bytes()
    started = time.perf_counter()
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    path = directory / "tokens.arrow"
    examples = _examples(directory, encoder=encoder, num_rows=num_rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while block := list(islice(examples, 1000)):
            columns = [[example.tokens for example in block], [_labels(example) for example in block]]
            writer.write_batch(pa.record_batch([pa.array(c, pa.list_(pa.int32())) for c in columns], schema))
    seconds = time.perf_counter() - started
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    lengths = [len(row) for row in table["input_ids"]]
    peak = anonymous_bytes()
    for index in np.random.default_rng(0).choice(len(lengths), min(len(lengths), 2000), replace=False):
        table.slice(int(index), 1).to_pylist()
    return {
        "seconds": seconds,
        "anonymous_bytes": max(peak, anonymous_bytes()) - before,
        "num_tokens": float(sum(lengths)),
    }


def anonymous_bytes() -> int:
    """Of this process, after what can be freed was freed."""
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell anonymous memory")


CONTENDERS: dict[str, Callable[[Path, int], Report]] = {
    "tandem: tokenise": tokenise,
    "tandem: open": open_again,
    "lists": python_lists,
    "arrow": arrow,
}


def _use(dataset: TokenizedDataset) -> tuple[float, int]:
    import torch

    plan = BatchPlan(
        lengths=dataset.lengths, tokens_per_batch=TOKENS_PER_BATCH, num_epochs=1, seed=0, max_steps=None
    )
    cpu, first, peak = torch.device("cpu"), 0.0, 0
    for step in range(min(NUM_BATCHES, plan.num_steps)):
        collate(dataset, indices=plan.batch(step), device=cpu)
        first = first or time.perf_counter()
    peak = anonymous_bytes()
    return first, peak


def _cached(directory: Path, *, encoder: ChatEncoder) -> TokenizedDataset:
    cache = TokenCache(directory / "cache", max_bytes=1 << 40, warn=print)
    return cache.open(directory / "rows.jsonl", encoder=encoder, max_length=MAX_LENGTH, overlong="drop")


def _examples(directory: Path, *, encoder: ChatEncoder, num_rows: int) -> Iterator[Example]:
    rows = islice(read_rows(directory / "rows.jsonl"), num_rows)
    while block := list(islice(rows, 512)):
        for examples in encoder.encode(block):
            yield from (example for example in examples if len(example.tokens) <= MAX_LENGTH)


def _labels(example: Example) -> list[int]:
    return [
        token if is_answer else -100
        for token, is_answer in zip(example.tokens, example.is_answer, strict=True)
    ]


def _encoder(directory: Path) -> ChatEncoder:
    import torch  # what the trainer has loaded anyway belongs to no contender

    torch.zeros(1)
    return ChatEncoder(load_tokenizer(directory / "tokenizer"))


def _train_tokenizer(directory: Path, *, path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from inference.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, TURN_END

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (message.content for row in islice(read_rows(path), SAMPLE_ROWS) for message in row.messages)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=TURN_END, chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(directory / "tokenizer")


def _run(contender: str, directory: Path, *, rows: int) -> Report:
    command = [sys.executable, "-m", "benchmarks.data", "--contender", contender]
    done = subprocess.run(
        [*command, "--directory", str(directory), "--rows", str(rows)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    report: Report = json.loads(done.stdout.splitlines()[-1])
    return report


def _median(reports: list[Report]) -> Report:
    return {name: statistics.median(report[name] for report in reports) for name in reports[0]}


def _print(name: str, report: Report, *, rows: int, n: int = 1) -> None:
    first = report.get("first_batch_seconds")
    planned = "" if first is None else f", first batch after {first:.2f} s more"
    print(
        f"{name:18} {rows:8} rows, {report['num_tokens'] / 1e6:6.1f} M tokens: {report['seconds']:7.2f} s"
        f"{planned}; {report['anonymous_bytes'] / MEGABYTE:7.0f} MB anonymous (n = {n})",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens of a large file, beside Python lists and Arrow.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--bytes-per-row", type=int, default=2900)
    parser.add_argument("--peer-rows", type=int, default=5_000, help="rows of the lists and of Arrow")
    parser.add_argument("--contender", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
