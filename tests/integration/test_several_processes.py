"""A real worker whose every job is trained by two processes: steered and hurt through the usual doors."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import psutil
import pytest

from registry.records import Checkpoint
from registry.states import JobState
from tasks.api import JobHandle
from tasks.testing import Stack, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pair(stand_up: Callable[[Mapping[str, str]], AbstractContextManager[Stack]]) -> Iterator[Stack]:
    with stand_up({"TANDEM_TRAINING__NUM_PROCESSES": "2"}) as found:
        # By the command: this process's Celery talks to the Redis of the first stack that it met.
        done = found.tandem("checkpoint", "import", str(found.material.base_model), "--as-base")
        assert done.returncode == 0, done.stderr
        yield found


def submit(stack: Stack, *options: str) -> JobHandle:
    """The same job each time, by the command line."""
    path = stack.write_words("pair.jsonl", num_rows=3000)
    settings = {"tokens_per_batch": 320, "learning_rate": 0.001}
    chosen = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = stack.tandem("submit", str(path), "--parent", "base", "--json", *chosen, *options)
    assert done.returncode == 0, done.stderr
    return stack.client.job(json.loads(done.stdout)["id"])


def ranks(handle: JobHandle) -> dict[str, psutil.Process]:
    """The processes that train it now, by their number."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "-m trainer" in words and handle.id in words:
            number = process.environ().get("RANK")
            if number is not None:
                found[number] = process
    return found


def step_of(handle: JobHandle) -> int:
    progress = handle.row.progress
    return 0 if progress is None else progress.step


def weights_of(stack: Stack, handle: JobHandle) -> str:
    with stack.registry.reading() as tx:
        return tx.get(Checkpoint, handle.row.final_checkpoint_id or "none").weights_sha256


def test_two_processes_are_paused_resumed_and_one_of_them_killed_and_the_weights_are_the_same(
    pair: Stack,
) -> None:
    whole = submit(pair)
    assert whole.wait(timeout_seconds=180).state is JobState.SUCCEEDED
    hurt = submit(pair, "--force")
    wait_for(lambda: step_of(hurt) >= 2, seconds=90, message="it trains")
    assert set(ranks(hurt)) == {"0", "1"}

    assert pair.tandem("job", "pause", hurt.id).returncode == 0
    wait_for(lambda: hurt.row.state is JobState.PAUSED, seconds=60, message="it is paused")
    paused_at = step_of(hurt)
    assert 2 <= paused_at < step_of(whole)
    assert ranks(hurt) == {}

    assert pair.tandem("job", "resume", hurt.id).returncode == 0
    wait_for(lambda: step_of(hurt) > paused_at, seconds=90, message="it goes on")
    survivor = ranks(hurt)["0"]
    ranks(hurt)["1"].kill()
    survivor.wait(timeout=15)

    row = hurt.wait(timeout_seconds=180)
    assert (row.state, row.attempts) == (JobState.SUCCEEDED, 1)
    assert [problem.kind for problem in row.problems] == ["killed"]
    assert step_of(hurt) == step_of(whole)
    assert weights_of(pair, hurt) == weights_of(pair, whole)
