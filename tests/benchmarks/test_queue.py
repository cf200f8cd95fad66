import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
def test_the_queue_is_measured_beside_bare_celery() -> None:
    options = ["--jobs", "4", "--repeats", "2", "--finished", "10", "--database", "sqlite"]
    command = [sys.executable, "-m", "benchmarks.queue", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sqlite, 10 finished jobs; n = 4 jobs a row, 2 repeats" in done.stdout
    assert "tandem / bare, paced: p50" in done.stdout
    assert "tandem / bare, burst: p50" in done.stdout
    assert "tandem / durable, paced: p50" in done.stdout
    assert "tandem / least, paced: p50" in done.stdout
    assert "least / bare, paced: p50" in done.stdout
    assert "replay / bare, paced: p50" in done.stdout
    assert "tandem / replay, paced: p50" in done.stdout
