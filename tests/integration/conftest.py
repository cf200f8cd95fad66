"""A real stack in a fresh home, started as a user would start it."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from config.settings import load_settings
from registry.records import Checkpoint
from registry.states import CheckpointState
from tasks.demo.plan import Material
from tasks.testing import Stack, StatusReader, fresh_environment, left_behind, run, wait_for

DRIVER = Path(__file__).parent / "driver"

StandUp = Callable[[Mapping[str, str]], AbstractContextManager[Stack]]


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    made = Material(tmp_path_factory.mktemp("material"))
    command = [sys.executable, "-m", "tasks.demo.material", str(made.directory)]
    subprocess.run(command, check=True, timeout=300)
    return made


@pytest.fixture(scope="session")
def stand_up(tmp_path_factory: pytest.TempPathFactory, material: Material) -> StandUp:
    def start(settings: Mapping[str, str]) -> AbstractContextManager[Stack]:
        return standing(tmp_path_factory.mktemp("work"), material=material, changes=settings)

    return start


@pytest.fixture(scope="session")
def stack(stand_up: StandUp) -> Iterator[Stack]:
    with stand_up({}) as found:
        yield found


@contextmanager
def standing(work: Path, *, material: Material, changes: Mapping[str, str]) -> Iterator[Stack]:
    """A stack with these settings, inside this block; it leaves no process and never a torn status file."""
    shutil.copytree(material.directory, work / "material")
    environment = fresh_environment(work / "var")
    # Whether its workers see a GPU is for a test to say; at first there is none.
    environment |= {"PYTHONPATH": str(DRIVER), "STAND_IN_GPU": str(work / "gpu.json"), **changes}
    before = dict(os.environ)
    os.environ.update(environment)
    settings = load_settings()
    up = run("tandem", "up", "--detach", cwd=work, environment=environment, timeout=200)
    assert up.returncode == 0, up.stderr
    reader = StatusReader(settings.paths.status)
    thread = threading.Thread(target=reader.run, daemon=True)
    thread.start()
    yield Stack(work, environment, settings, Material(work / "material"), reader)
    reader.stop.set()
    thread.join()
    down = run("tandem", "down", cwd=work, environment=environment, timeout=200)
    os.environ.clear()
    os.environ.update(before)
    assert down.returncode == 0, down.stderr
    assert left_behind(settings.home) == []
    assert reader.num_reads > 100
    assert reader.problems == []


@pytest.fixture(scope="session")
def served(stack: Stack) -> Checkpoint:
    """The base model, measured and served."""
    client = stack.client
    client.build_suite(stack.material.suite)
    base = client.import_checkpoint(stack.material.base_model, as_base=True)

    def is_accepted() -> bool:
        with stack.registry.reading() as tx:
            return tx.get(Checkpoint, base.id).state is CheckpointState.ACCEPTED

    wait_for(is_accepted, seconds=90, message="the base model is accepted")
    client.deploy(base.id)
    return base
