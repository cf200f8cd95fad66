"""tandem's training engine beside Hugging Face's Trainer, TRL and a bare loop, in one run: useful tokens a
second.

Same rows, same model, same optimizer, same number of threads, at three model sizes and three distributions
of lengths. Useful tokens are those of the rows, never padding. The contenders take turns, so that a drift of
the machine favours none; each starts from the same untrained weights. The bare loop takes the engine's own
batches and does nothing but forward, backward and update: the distance to it is what messages, checks and
control cost. How far rows of unlike length, eight at random, are padded bounds what can be won over a trainer
that does so: it is told with each cell.

`--cpu-time` counts the seconds of CPU that all threads of this process took instead of those that passed: on
a machine that others keep busy these say more, though a shared core and its caches still cost.

    python -m benchmarks.trainer [--seconds 6] [--repeats 3] [--cpu-time]
        [--sizes 0.8M ...] [--lengths even ...]
    python -m benchmarks.trainer --rows FILE --model DIR
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.support.material import (
    LENGTHS,
    SIZES,
    Material,
    make_material,
    make_model,
    write_rows,
)
from benchmarks.support.trainers import CONTENDERS, Contender

WARM_UP_SECONDS = 1.0
OURS = "tandem"
MATMUL_SIZE = 1024
NUM_MATMULS = 20
PEER_ROWS = 8
NUM_SHUFFLES = 20
NEEDED = {"HF": "accelerate", "TRL": "trl"}

Rates = dict[str, list[float]]


def main() -> int:
    """Measure every contender in turns, a table a cell, then the ratios of all cells."""
    options = _options()
    torch.set_num_threads(options.threads)
    contenders = _contenders()
    peak = matmul_peak_flops()
    print(f"{options.threads} thread(s), matmul peak {peak / 1e9:.0f} GFLOP/s")
    found: dict[str, Rates] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, material in _cells(options, directory=Path(directory)):
            print(f"\n{name}: {_describe(material, options=options)}", flush=True)
            found[name] = _measure(material, contenders=contenders, options=options)
            _print_table(found[name], flops_per_token=flops_per_token(material), peak=peak)
    _print_summary(found)
    return 0


def matmul_peak_flops() -> float:
    """Operations a second of this machine's best float32 product of two square matrices."""
    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE)
    best = float("inf")
    for _ in range(NUM_MATMULS):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * MATMUL_SIZE**3 / best


def flops_per_token(material: Material) -> float:
    """Of training: six a weight that multiplies, and the attention over the mean of the rows' prefixes.

    Kaplan et al. 2020, section 2.1, and the attention's term as in PaLM (Chowdhery et al. 2022, appendix B),
    halved, since a token looks at what stands before it alone.
    """
    config = AutoConfig.from_pretrained(material.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    num_weights = sum(
        weight.numel() for weight in model.parameters()
    )  # the embedding counts once: as the head
    lengths = material.dataset.lengths.astype(float)
    mean_prefix = float((lengths**2).sum() / lengths.sum()) / 2
    width = config.num_attention_heads * config.head_dim
    return 6 * num_weights + 12 * config.num_hidden_layers * width * mean_prefix


def padding_factor(lengths: np.ndarray) -> float:
    """Tokens of batches of eight random rows, each padded to its longest, to one token of a row."""
    draw = np.random.default_rng(0)
    usable = len(lengths) // PEER_ROWS * PEER_ROWS
    shuffled = np.stack([draw.permutation(lengths)[:usable] for _ in range(NUM_SHUFFLES)])
    longest = shuffled.reshape(-1, PEER_ROWS).max(axis=1)
    return float(PEER_ROWS * longest.sum() / shuffled.sum())


def _contenders() -> dict[str, Contender]:
    """Those whose library is installed; the others are named."""
    missing = {name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None}
    for name in sorted(missing):
        print(f"{name}: not measured, `{NEEDED[name]}` is not installed.")
    return {name: run for name, run in CONTENDERS.items() if name.split(",")[0].split()[0] not in missing}


def _cells(options: argparse.Namespace, *, directory: Path) -> Iterator[tuple[str, Material]]:
    budget = options.tokens_per_batch
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.rows or options.model:
        model = options.model or make_model(directory / "model", size="0.8M")
        rows = options.rows or write_rows(directory / "rows.jsonl", lengths="long-tailed")
        yield "given", make_material(directory, model=model, rows=rows, tokens_per_batch=budget, clock=clock)
        return
    for size in options.sizes:
        model = make_model(directory / size, size=size)
        for lengths in options.lengths:
            rows = write_rows(directory / "rows.jsonl", lengths=lengths)
            material = make_material(directory, model=model, rows=rows, tokens_per_batch=budget, clock=clock)
            yield f"{size}, {lengths}", material


def _measure(material: Material, *, contenders: dict[str, Contender], options: argparse.Namespace) -> Rates:
    rates: Rates = {name: [] for name in contenders}
    with _in_silence():
        for run in contenders.values():
            run(material, WARM_UP_SECONDS)
        for _ in range(options.repeats):
            for name, run in contenders.items():
                rates[name].append(run(material, options.seconds))
    return rates


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """The peers print and warn at each start: the table is what is read."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _print_table(rates: Rates, *, flops_per_token: float, peak: float) -> None:
    print(f"{'':<28} {'tokens/s':>9} {'lowest':>9} {'highest':>9} {'n':>3} {'tandem is':>9} {'MFU':>6}")
    ours = statistics.median(rates[OURS])
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"{name:<28} {median:9,.0f} {min(values):9,.0f} {max(values):9,.0f} {len(values):3d} "
            f"{ours / median:8.2f}x {median * flops_per_token / peak:6.1%}",
            flush=True,
        )


def _print_summary(found: dict[str, Rates]) -> None:
    """tandem's median over each contender's: least, median and greatest of all cells."""
    print(f"\n{'tandem over':<28} {'least':>7} {'median':>7} {'most':>7}   cells: {len(found)}")
    for name in next(iter(found.values())):
        ratios = [statistics.median(rates[OURS]) / statistics.median(rates[name]) for rates in found.values()]
        print(f"{name:<28} {min(ratios):6.2f}x {statistics.median(ratios):6.2f}x {max(ratios):6.2f}x")


def _describe(material: Material, *, options: argparse.Namespace) -> str:
    lengths = material.dataset.lengths
    return (
        f"{len(lengths)} rows of {lengths.min()} to {lengths.max()} tokens (mean {lengths.mean():.0f}), "
        f"{padding_factor(lengths):.2f} times as many where eight are padded at random, "
        f"{material.tokens_per_batch} tokens a batch, {options.repeats} x {options.seconds:g} s each in turns"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="of training a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of CPU, not those that passed")
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--model", type=Path, help="model directory; untrained ones of --sizes without")
    parser.add_argument("--rows", type=Path, help="JSONL file; letters of --lengths without")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
