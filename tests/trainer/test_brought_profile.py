"""A profile that an installed package brings, in a trainer of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.config.job import JobConfig
from trainer.core.data import TokenizedDataset
from trainer.messages import ChildMessage, Failed, Finished, parse_line

pytestmark = pytest.mark.integration

PROFILE = """
from registry.profiles.base import Profile


class Shout(Profile):
    name = "shout"

    def wrap_question(self, text: str) -> str:
        return text

    def wrap_answer(self, text: str, *, question: str) -> str:
        return text if text.endswith("!!") else text + "!!"

    def plain_answer(self, text: str) -> str | None:
        return text.removesuffix("!!")
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with the distribution `shouting`, as an installer leaves it."""
    site = tmp_path / "site"
    about = site / "shouting-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "shouting.py").write_text(PROFILE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[tandem.profiles]\nshout = shouting:Shout\n")
    return site


def train(config: JobConfig, *, directory: Path, python_path: str) -> tuple[int, list[ChildMessage]]:
    path = directory / "job.json"
    path.write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "--alone", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=200,
    )
    return done.returncode, [parse_line(line) for line in done.stdout.splitlines()]


def test_a_profile_of_an_installed_package_is_found_and_rewrites_what_is_learnt(
    job: Callable[..., JobConfig], dataset: TokenizedDataset, installed: Path, tmp_path: Path
) -> None:
    config = job().changed(profile={"name": "shout"})
    code, messages = train(config, directory=tmp_path, python_path=str(installed))
    assert code == 0
    (finished,) = (message for message in messages if isinstance(message, Finished))
    # One token a character: each answer ends with two more.
    assert finished.result.num_tokens == len(dataset.tokens) + 2 * dataset.num_sequences
    manifest = json.loads((Path(str(finished.result.final_checkpoint)) / "manifest.json").read_text())
    assert manifest["config"]["profile"] == {"name": "shout"}


def test_without_the_package_the_job_is_refused(job: Callable[..., JobConfig], tmp_path: Path) -> None:
    code, messages = train(job().changed(profile={"name": "shout"}), directory=tmp_path, python_path="")
    assert code == 2
    (failed,) = (message for message in messages if isinstance(message, Failed))
    assert "no profile 'shout'" in failed.message
