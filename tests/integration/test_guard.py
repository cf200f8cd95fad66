"""A GPU that somebody else uses: a job of a standing stack waits, says why, and goes on by itself."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from registry.states import JobState
from tasks.testing import Stack, wait_for
from workers.machine_lock import bearing

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

GB = 10**9


class Gpu:
    """The card that the stack's workers see while this is in use."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.uuid = f"GPU-{uuid4()}"

    def is_used(self, *, free: int, processes: list[tuple[int, int]] | None = None) -> None:
        state = {"uuid": self.uuid, "total": 24 * GB, "free": free, "processes": processes or []}
        whole = self._file.with_suffix(".new")
        whole.write_text(json.dumps(state))
        whole.replace(self._file)

    def is_removed(self) -> None:
        self._file.unlink(missing_ok=True)


@pytest.fixture
def gpu(stack: Stack) -> Iterator[Gpu]:
    card = Gpu(Path(stack.environment["STAND_IN_GPU"]))
    yield card
    card.is_removed()


@pytest.fixture
def stranger() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def test_a_job_waits_for_a_gpu_with_the_reason_shown_and_then_begins_without_a_lost_attempt(
    stack: Stack, gpu: Gpu, stranger: int
) -> None:
    def is_shown(words: str) -> None:
        wait_for(
            lambda: words in stack.tandem("queue", "list").stdout, seconds=60, message=f"{words!r} is shown"
        )

    stack.client.import_checkpoint(stack.material.base_model, as_base=True)
    gpu.is_used(free=2 * GB, processes=[(stranger, 22 * GB)])
    path = stack.write_words("guarded.jsonl", num_rows=200, skip=900)
    options = {"tokens_per_batch": 640, "max_steps": 3}
    handle = stack.client.submit(path, parent="base", hyperparameters=options)
    is_shown(f"gpu-0 is used by process {stranger} (sleep, 22.0 GB)")
    gpu.is_used(free=GB // 5)
    is_shown("gpu-0 has 0.2 GB of 24.0 GB free")
    with bearing(gpu.uuid):
        gpu.is_used(free=24 * GB)
        is_shown(f"gpu-0 is held for another tandem home by process {os.getpid()}")
        assert handle.row.state is JobState.QUEUED
    wait_for(lambda: handle.row.state is JobState.SUCCEEDED, seconds=90, message="it is trained")
    assert handle.row.attempts == 0
    assert "gpu-0" not in stack.tandem("queue", "list").stdout
