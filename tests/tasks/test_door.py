"""What a task says to its caller where the worker's host is in trouble."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tasks.door
import tasks.training
from config.settings import Settings, load_settings, setting_names
from registry.records import TrainingJob
from registry.testing import make_checkpoint, make_registry
from workers.app import app
from workers.context import Context
from workers.errors import TaskFailed

Call = Callable[..., Any]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    found = load_settings(home=tmp_path / "home")
    found.paths.prepare()
    return found


@pytest.fixture
def context(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    context = Context(settings=settings, registry=make_registry(tmp_path), celery=app)
    with context.registry.transaction() as tx:
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
    monkeypatch.setattr(tasks.door, "current_context", lambda: context)
    monkeypatch.setattr(Context, "ring", lambda self, messages: None)
    return context


def drop(settings: Settings) -> Path:
    path = settings.paths.inbox / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    os.utime(path, (0, 0))  # nobody writes to it any more
    return path


def fail_with(number: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no")

    return refuse


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "Free space"), (errno.ETIMEDOUT, "another machine")]
)
def test_a_disk_or_a_network_that_is_in_the_way_is_told_in_a_sentence(
    context: Context, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    path = drop(context.settings)
    monkeypatch.setattr(shutil, "copyfile", fail_with(number))
    with pytest.raises(TaskFailed, match=f"training.submit could not do its work: .*{remedy}"):
        app.tasks["training.submit"](dataset=str(path))


def test_an_error_that_nobody_foresaw_stays_what_it_is(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(context.settings)
    monkeypatch.setattr(tasks.training.submission, "submit", fail_with(errno.EMFILE))
    with pytest.raises(OSError, match="no"):
        app.tasks["training.submit"](dataset=str(path))


def test_an_argument_of_any_name_is_refused_in_a_sentence() -> None:
    with pytest.raises(TaskFailed, match="task is not a field of it"):
        app.tasks["training.submit"](dataset="rows.jsonl", task="mine")


def test_the_inbox_keeps_a_file_that_the_disk_has_no_room_for(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(context.settings)
    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfile", fail_with(errno.ENOSPC))
        app.tasks["inbox.scan"]()
    assert path.exists()
    app.tasks["inbox.scan"]()
    assert not path.exists()
    with context.registry.reading() as tx:
        assert [job.name for job in tx.find(TrainingJob)] == ["rows"]
