"""Marks the tests that load torch by where they lie, and does not even import them in a quick run."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN_A_MODEL = (
    HERE / "inference",
    HERE / "trainer",
    HERE / "benchmarks" / "test_lab.py",
    HERE / "tasks" / "test_unusable_material.py",
)
LOADS_TORCH = (*RUN_A_MODEL, HERE / "integration")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Importing torch and transformers takes longer than all the quick tests together."""
    is_quick = {"not integration", "not model"} <= set(config.option.markexpr.split(" and "))
    return True if is_quick and collection_path in LOADS_TORCH else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_integration = item.get_closest_marker("integration") is not None
        if not is_integration and any(item.path.is_relative_to(folder) for folder in RUN_A_MODEL):
            item.add_marker(pytest.mark.model)
