import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
def test_the_token_cache_is_measured_beside_lists_and_arrow() -> None:
    options = ["--rows", "300", "--bytes-per-row", "200", "--peer-rows", "100"]
    command = [sys.executable, "-m", "benchmarks.data", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for contender in ("tandem, tokenised", "tandem, opened", "arrow", "lists"):
        assert f"\n{contender}" in done.stdout
