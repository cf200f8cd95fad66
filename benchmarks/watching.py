"""What watching a run costs: the same job plain, measured on held-out rows, and reported to TensorBoard as
well, in turns.

The demo's small model and words. Cost is processor time of the whole process, its threads included, so that
what else the machine does counts for little; weights must come out the same to the bit.

    python -m benchmarks.watching [--steps 200] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.files import sha256_file
from tasks.demo.material import make_material
from tasks.demo.plan import FILES, Material
from trainer.config.job import check_job
from trainer.core.engine import TrainerEngine
from trainer.messages import ChildMessage, Progress

Contender = Callable[[Path], dict[str, Any]]


def main() -> int:
    """A line a contender: median seconds, range, ratio to the plain run; then what was measured."""
    parser = argparse.ArgumentParser(description="What watching a run costs.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        material = Material(Path(name) / "material")
        make_material(material)
        contenders: dict[str, Contender] = {
            "plain": lambda _: {},
            "gap": lambda _: {"validation_path": str(material.suite), "validate_every_seconds": 1},
            "gap + TensorBoard": lambda home: {
                "validation_path": str(material.suite),
                "validate_every_seconds": 1,
                "report_to": ["tensorboard"],
                "logs_dir": str(home / "logs"),
            },
        }
        _run(material, home=Path(name) / "warm-up", steps=5, monitoring={})
        seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
        weights, shares = set(), []
        for repeat in range(options.repeats):
            for contender, monitoring in contenders.items():
                home = Path(name) / f"{contender}-{repeat}"
                spent, sha256, share = _run(
                    material, home=home, steps=options.steps, monitoring=monitoring(home)
                )
                seconds[contender].append(spent)
                weights.add(sha256)
                shares += [share] if contender != "plain" else []
    _print(seconds, shares=shares, num_weights=len(weights))
    return 0 if len(weights) == 1 else 1


def _run(
    material: Material, *, home: Path, steps: int, monitoring: dict[str, Any]
) -> tuple[float, str, float]:
    """Processor seconds, the final weights' hash, and the share of the time that measuring took."""
    said: list[ChildMessage] = []
    config = check_job(
        {
            "job_id": "watched",
            "hyperparameters": {"max_steps": steps, "num_epochs": 100, "tokens_per_batch": 1280},
            "model": {"path": str(material.base_model), "max_length": 128},
            "data": {"path": str(material.training_file(FILES[0].name))},
            "output": {"checkpoints_dir": str(home / "checkpoints")},
            "environment": {"device": "cpu"},
            "monitoring": monitoring,
        }
    )
    started = time.process_time()
    result = TrainerEngine(emit=said.append).run_job(config)
    spent = time.process_time() - started
    measured = {
        message.micro_evaluation.step: message.micro_evaluation.duration_seconds
        for message in said
        if isinstance(message, Progress) and message.micro_evaluation is not None
    }
    sha256 = sha256_file(Path(str(result.final_checkpoint)) / "model.safetensors")
    return spent, sha256, sum(measured.values()) / result.duration_seconds


def _print(seconds: dict[str, list[float]], *, shares: list[float], num_weights: int) -> None:
    plain = statistics.median(seconds["plain"])
    for contender, found in seconds.items():
        median = statistics.median(found)
        print(
            f"{contender:18} {median:7.2f} s ({min(found):.2f} to {max(found):.2f}, n = {len(found)})  "
            f"{median / plain:.3f} of plain"
        )
    print(f"measuring took {max(shares):.2%} of a run's time at most; different weights: {num_weights - 1}")


if __name__ == "__main__":
    raise SystemExit(main())
