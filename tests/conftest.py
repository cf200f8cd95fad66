"""Marks the tests that load torch by where they lie, so that the others stay quick."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN_A_MODEL = (HERE / "inference", HERE / "trainer" / "core")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_integration = item.get_closest_marker("integration") is not None
        if not is_integration and any(item.path.is_relative_to(folder) for folder in RUN_A_MODEL):
            item.add_marker(pytest.mark.model)
