"""Automated testing from door to door: asked for, answered, recorded once, told once."""

from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings, load_settings, setting_names
from registry import accuracy
from registry.messages import AccuracyRequest, Nothing
from registry.reports import AccuracyReport, Alert
from registry.states import CheckpointState, EvaluationState
from registry.store import Registry
from registry.testing import make_checkpoint, make_evaluation, make_evidence, make_registry, make_suite
from tasks import accuracy as doors
from workers.context import Context
from workers.contracts import parse_request


class Bell:
    """Stands for Celery: remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send_task(self, name: str, *, kwargs: dict[str, Any], **_options: Any) -> Any:
        self.sent.append((name, kwargs))
        return type("Sent", (), {"id": "1"})


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    found = load_settings(home=tmp_path / "home")
    found.paths.prepare()
    return found


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def context(tmp_path: Path, settings: Settings, bell: Bell) -> Context:
    return Context(settings=settings, registry=make_registry(tmp_path), celery=bell)  # type: ignore[arg-type]


def request_of(settings: Settings) -> AccuracyRequest:
    return AccuracyRequest(
        report_id=accuracy.report_id("eval-new"),
        candidate=make_evidence("new", losses=[0.5] * 50, correct=[place > 20 for place in range(50)]),
        baseline=make_evidence("base", losses=[0.5] * 50),
        limits=settings.testing,
    )


def add_rows(registry: Registry) -> None:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        tx.add(make_checkpoint(id="new", state=CheckpointState.QUARANTINED), actor="test")
        answered = EvaluationState.ANSWERED
        tx.add(make_evaluation(id="eval-new", checkpoint_id="new", state=answered), actor="test")


def test_a_test_goes_home_as_a_message_and_is_recorded_once(
    context: Context, settings: Settings, bell: Bell
) -> None:
    add_rows(context.registry)
    doors.run(request_of(settings), context)
    ((name, fields),) = bell.sent
    assert name == "testing.record"
    report = parse_request(name, fields=fields)
    assert isinstance(report, AccuracyReport)
    for _ in range(2):
        doors.record(report, context)
    with context.registry.reading() as tx:
        assert len(tx.find(AccuracyReport)) == len(tx.find(Alert)) == 1
    written = (settings.paths.status / "automated_testing.json").read_text()
    assert "row-0020" in written


def test_the_net_asks_for_what_is_owed_and_for_nothing_where_nothing_is(context: Context, bell: Bell) -> None:
    doors.sweep(Nothing(), context)
    assert bell.sent == []
    with context.registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        tx.add(make_checkpoint(), actor="test")
    for _ in range(2):
        doors.sweep(Nothing(), context)
    assert [name for name, _ in bell.sent] == ["evaluation.run"]
