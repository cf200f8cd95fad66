import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
def test_a_deployment_is_measured_beside_plain_rsync() -> None:
    command = [sys.executable, "-m", "benchmarks.deploy", "--megabytes", "2", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 MB, n = 1 each" in done.stdout
    assert "tandem / plain:" in done.stdout
