from pathlib import Path

import pytest

from registry.store import Registry
from registry.testing import ManualClock, make_registry


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def registry(tmp_path: Path, clock: ManualClock) -> Registry:
    return make_registry(tmp_path, clock=clock)
