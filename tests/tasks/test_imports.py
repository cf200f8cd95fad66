"""What the workers and the command line load before they are asked to do anything."""

import subprocess
import sys

import pytest

HEAVY = "{'torch', 'transformers', 'reasoning_gym', 'sympy', 'pyarrow'}"


@pytest.mark.integration
@pytest.mark.parametrize("module", ["tasks.cli.main", "tasks.api", "workers.celery_settings"])
def test_nothing_heavy_is_loaded_before_the_work_needs_it(module: str) -> None:
    load = f"import importlib, sys; loaded = importlib.import_module('{module}')"
    tasks = "[importlib.import_module(name) for name in getattr(loaded, 'TASK_MODULES', ())]"
    check = f"sys.exit(str({HEAVY} & set(sys.modules)) if {HEAVY} & set(sys.modules) else 0)"
    ran = subprocess.run(
        [sys.executable, "-c", f"{load}; {tasks}; {check}"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
