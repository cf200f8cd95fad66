"""The memory of training at a large vocabulary, beside Hugging Face's and TRL's trainers.

Each contender is a process of its own that trains one epoch of the same rows, on the same untrained model,
and is watched as in benchmarks/memory.py: what the process had before the model was loaded is taken off.
Peers keep their default of eight rows a batch; ours may have as many tokens a batch as eight mean rows, and
TRL's packs the same. Each repeat has other rows.

    python -m benchmarks.peak_memory [--repeats 3] [--rows 16] [--hidden 64] [--layers 2]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.memory import MEGABYTE, Point, build, resident_bytes, trim_heap, watched
from benchmarks.support import trainers
from benchmarks.support.material import MAX_LENGTH, Material, make_material, write_rows

PEER_ROWS = 8
FOREVER_SECONDS = 1e9  # every contender ends with its epoch


class Case(BaseModel):
    """One process."""

    contender: str = "tandem"
    repeat: int = 0
    vocabulary: int
    hidden: int
    layers: int
    num_rows: int


def main() -> None:
    """Print a line a contender."""
    options = _options()
    if options.case:
        print(json.dumps(measure(Case.model_validate_json(options.case))))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _contenders()}
    for repeat in range(options.repeats):
        for name, results in found.items():
            results.append(run(_case(options, contender=name, repeat=repeat)))
            print(f"{repeat}: {name}: {results[-1]['peak_bytes'] / MEGABYTE:.0f} MB", flush=True)
    print(f"{options.rows} rows a repeat, n = {options.repeats}; median, lowest and highest")
    ours = [result["peak_bytes"] for result in found["tandem"]]
    for name, results in found.items():
        peaks = [result["peak_bytes"] for result in results]
        shares = [mine / theirs for mine, theirs in zip(ours, peaks, strict=True)]
        baseline = results[0]["baseline_bytes"] / MEGABYTE
        print(
            f"{name:28}: {_spread([peak / MEGABYTE for peak in peaks], digits=0)} MB "
            f"above {baseline:.0f} MB; tandem takes {_spread(shares, digits=2)} of it"
        )


def run(case: Case) -> dict[str, Any]:
    """Measure a case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", "--case", case.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(case: Case) -> dict[str, int]:
    """Train one epoch in this process; its peak, in bytes above what it had before the model."""
    trainers.MANY_EPOCHS = 1
    train = _contenders()[case.contender]
    with tempfile.TemporaryDirectory() as name:
        # What libraries load or set up at first use is no part of training.
        train(
            _material(Path(name) / "small", case=case.model_copy(update={"vocabulary": 200, "num_rows": 8}))
        )
        material = _material(Path(name) / "real", case=case)
        gc.collect()
        trim_heap()
        baseline = resident_bytes()
        with watched() as seen:
            train(material)
    return {"peak_bytes": max(seen) - baseline, "baseline_bytes": baseline}


def train_tandem(material: Material) -> None:
    """One epoch with the engine, its settings left alone."""
    job = material.job()
    once = job.changed(hyperparameters=job.hyperparameters.changed(num_epochs=1))
    trainers.TrainerEngine(emit=lambda _: None).run_job(once)


def _contenders() -> dict[str, Any]:
    peers = {
        "HF Trainer, default": trainers.run_hf_trainer,
        "HF Trainer, group_by_length": trainers.run_hf_grouped,
        "TRL, default": trainers.run_trl,
        "TRL, packing": _train_packed,
    }
    return {
        **{name: partial(peer, seconds=FOREVER_SECONDS) for name, peer in peers.items()},
        "tandem": train_tandem,
    }


def _train_packed(material: Material, seconds: float) -> float:
    num_packs = max(1, round(material.tokens_per_batch / MAX_LENGTH))
    return trainers.run_trl(material, seconds, packing=True, per_device_train_batch_size=num_packs)


def _material(directory: Path, *, case: Case) -> Material:
    point = Point(hidden=case.hidden, layers=case.layers, vocabulary=case.vocabulary, rows=1, length=1)
    build(directory / "model", point=point)
    lines = write_rows(directory / "rows.jsonl", lengths="long-tailed").read_text().splitlines(keepends=True)
    first = case.repeat * case.num_rows
    (directory / "rows.jsonl").write_text("".join(lines[first : first + case.num_rows]))
    common: dict[str, Any] = {"model": directory / "model", "rows": directory / "rows.jsonl"}
    material = make_material(directory, tokens_per_batch=1, **common)
    mean_tokens = len(material.dataset.tokens) / material.dataset.num_sequences
    return make_material(directory, tokens_per_batch=round(PEER_ROWS * mean_tokens), **common)


def _case(options: argparse.Namespace, *, contender: str, repeat: int) -> Case:
    return Case(
        contender=contender,
        repeat=repeat,
        vocabulary=options.vocabulary,
        hidden=options.hidden,
        layers=options.layers,
        num_rows=options.rows,
    )


def _spread(values: list[float], *, digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory at a large vocabulary, side by side.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
