import json
import os
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from registry.errors import DatasetError
from registry.states import Priority
from workers import inbox


def drop(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n")
    return path


def found(settings: Settings, *, seconds_later: float = 60) -> list[tuple[str, str]]:
    newest = max(path.stat().st_mtime for path in settings.paths.inbox.rglob("*"))
    ready = inbox.ready(settings, now_seconds=newest + seconds_later)
    return [(path.name, str(priority)) for path, priority in ready]


def test_the_folder_sets_the_priority_and_high_comes_first(settings: Settings) -> None:
    for name in ("low/c.jsonl", "b.jsonl", "high/a.jsonl"):
        drop(settings.paths.inbox / name)
    assert found(settings) == [("a.jsonl", "high"), ("b.jsonl", "normal"), ("c.jsonl", "low")]


def test_a_fresh_home_has_a_folder_for_each_queue(settings: Settings) -> None:
    assert {path.name for path in settings.paths.inbox.iterdir()} == {"high", "normal", "low"}


def test_a_file_written_before_the_clock_was_set_back_is_taken_all_the_same(settings: Settings) -> None:
    drop(settings.paths.inbox / "a.jsonl")
    assert found(settings, seconds_later=-3600) == [("a.jsonl", "normal")]


def test_a_file_that_is_still_being_written_is_left_alone(settings: Settings) -> None:
    drop(settings.paths.inbox / "a.jsonl")
    assert found(settings, seconds_later=0.5) == []


def test_hidden_files_links_and_other_suffixes_are_left_alone(settings: Settings) -> None:
    drop(settings.paths.inbox / ".a.jsonl")
    drop(settings.paths.inbox / "a.txt")
    (settings.paths.inbox / "link.jsonl").symlink_to(settings.paths.inbox / "a.txt")
    assert found(settings) == []


def test_a_folder_or_a_file_that_cannot_be_looked_at_hides_no_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*, method: str, name: str) -> None:
        real = getattr(Path, method)

        def look(path: Path) -> Any:
            if path.name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(Path, method, look)

    for name in ("high/a.jsonl", "b.jsonl", "c.jsonl", "low/d.jsonl"):
        drop(settings.paths.inbox / name)
    refuse(method="iterdir", name="high")
    refuse(method="lstat", name="b.jsonl")
    troubles: list[str] = []
    ready = inbox.ready(settings, now_seconds=0, on_error=lambda path, _: troubles.append(path.name))
    assert [path.name for path, _ in ready] == ["c.jsonl", "d.jsonl"]
    assert troubles == ["high", "b.jsonl"]


def test_a_refused_file_is_moved_aside_with_its_reason_and_never_over_another(settings: Settings) -> None:
    for _ in range(2):
        inbox.refuse(drop(settings.paths.inbox / "a.jsonl"), settings=settings, reason="line 1: not JSON")
    names = sorted(path.name for path in settings.paths.refused.iterdir())
    assert names == ["a.1.jsonl", "a.1.jsonl.reason.json", "a.jsonl", "a.jsonl.reason.json"]
    reason = json.loads((settings.paths.refused / "a.jsonl.reason.json").read_text())
    assert reason == {"file": "a.jsonl", "reason": "line 1: not JSON"}


def test_a_name_that_is_not_text_is_refused_and_moved_aside(settings: Settings) -> None:
    path = drop(Path(os.fsdecode(os.fsencode(settings.paths.inbox) + b"/\xff.jsonl")))
    with pytest.raises(DatasetError, match=r"The name .* is not UTF-8") as caught:
        inbox.request_for(path, priority=Priority.HIGH)
    target = inbox.refuse(path, settings=settings, reason=str(caught.value))
    assert target.name == "\\udcff.jsonl"
    assert not path.exists()


def test_the_longest_name_leaves_room_for_its_reason(settings: Settings) -> None:
    name = "é" * 124 + ".jsonl"
    target = inbox.refuse(drop(settings.paths.inbox / name), settings=settings, reason="line 1: not JSON")
    assert target.name == "é" * 100 + ".jsonl"
    assert json.loads(target.with_name(f"{target.name}.reason.json").read_text())["file"] == name
