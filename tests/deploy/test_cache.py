"""An entry can be used by whoever can read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.cache import Cache

NAME = "a" * 64


def test_an_entry_of_another_user_is_used_though_its_use_cannot_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / NAME).mkdir()
    monkeypatch.setattr("deploy.cache.os.utime", refuse)
    with Cache(tmp_path, max_bytes=1).using(NAME) as found:
        assert found == tmp_path / NAME


def test_a_use_is_noted_so_that_others_go_first(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path, max_bytes=1), "b" * 64
    for age_seconds, name in ((200, NAME), (100, other)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1_000_000 - age_seconds, 1_000_000 - age_seconds))
    assert cache.names() == [NAME, other]
    with cache.using(NAME):
        pass
    assert cache.names() == [other, NAME]
