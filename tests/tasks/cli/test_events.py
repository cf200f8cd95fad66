"""`tandem events`: a list, or a stream for `jq` and `head`."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from registry.errors import RegistryUnavailable
from registry.history import EventCursor, end_of_events
from registry.records import Event
from registry.store import Registry
from registry.testing import add_queued_job, make_checkpoint
from tasks.cli import events
from tasks.cli.events import Follower, Wanted, parse_since
from tasks.cli.main import cli
from workers.errors import RequestError

NOW = datetime(2027, 1, 1, 12, tzinfo=UTC)


def log(registry: Registry, *subjects: str) -> None:
    with registry.transaction() as tx:
        for subject in subjects:
            tx.log(kind="Test", subject_id=subject, before=None, after="added", actor="test", reason="a\nb")


def told(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(cli, ["events", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_json_is_an_object_a_line_newest_last(registry: Registry) -> None:
    log(registry, "a", "b", "c")
    assert [event["subject_id"] for event in told("--limit", "2")] == ["b", "c"]


def test_for_people_an_event_is_one_line_however_its_reason_is_written(registry: Registry) -> None:
    log(registry, "a")
    result = CliRunner().invoke(cli, ["events"])
    assert result.stdout.count("\n") == 1
    assert "a b" in result.stdout


def test_a_job_is_told_with_its_checkpoints_and_a_subject_alone(registry: Registry) -> None:
    with registry.transaction() as tx:
        job = add_queued_job(tx)
        tx.add(make_checkpoint(job_id=job.id), actor="test")
    log(registry, "other")
    assert {event["subject_id"] for event in told("--job", job.id)} == {job.id, "ckpt-aaaaaa-00000010"}
    assert {event["subject_id"] for event in told(job.id)} == {job.id}
    both = CliRunner().invoke(cli, ["events", "other", "--job", job.id])
    assert isinstance(both.exception, RequestError)


def test_the_id_of_the_last_event_seen_goes_on_behind_it_with_all_that_came(registry: Registry) -> None:
    log(registry, *(str(number) for number in range(1, 51)))
    assert [event["id"] for event in told("--since", "5")] == list(range(6, 51))
    assert told("--since", "50") == []
    assert len(told("--since", "1h")) == 50
    assert len(told()) == events.NUM_SHOWN


def test_a_home_without_a_registry_is_an_error_and_not_an_endless_wait(settings: object) -> None:
    result = CliRunner().invoke(cli, ["events", "--follow"])
    assert isinstance(result.exception, RegistryUnavailable)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17", (17, None)),
        ("90m", (None, NOW - timedelta(minutes=90))),
        ("2026-12-31T12:00+00:00", (None, NOW - timedelta(days=1))),
    ],
)
def test_since_is_an_id_or_a_time(text: str, expected: object) -> None:
    assert parse_since(text, now=NOW) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "+2h", "1.5h", "9" * 19, "999999d"])
def test_what_is_neither_is_refused_with_examples(text: str) -> None:
    with pytest.raises(RequestError, match="is no time"):
        parse_since(text, now=NOW)


def follower(registry: Registry, *, seen: list[Event], wanted: Wanted) -> Follower:
    with registry.reading() as tx:
        cursor = end_of_events(tx)
    return Follower(registry, wanted=wanted, show=seen.append, check=lambda: None, cursor=cursor)


def test_what_comes_is_shown_once_though_the_registry_is_away_in_between(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Event] = []
    log(registry, "before")
    following = follower(registry, seen=seen, wanted=Wanted())
    log(registry, "one")
    following.take()
    log(registry, "two")
    with monkeypatch.context() as patch:
        following.registry = Registry("sqlite:////no/such/place/tandem.db")
        following.take()
        following.take()
        patch.undo()
    following.registry = registry
    log(registry, "three")
    following.take()
    following.take()
    assert [event.subject_id for event in seen] == ["one", "two", "three"]
    assert capsys.readouterr().err.count("Asking again") == 1


def test_a_checkpoint_that_is_made_meanwhile_belongs_to_its_job(registry: Registry) -> None:
    seen: list[Event] = []
    with registry.transaction() as tx:
        job = add_queued_job(tx)
    following = follower(registry, seen=seen, wanted=Wanted(job=job.id))
    log(registry, "other")
    with registry.transaction() as tx:
        tx.add(make_checkpoint(job_id=job.id), actor="test")
    following.take()
    assert [event.subject_id for event in seen] == ["ckpt-aaaaaa-00000010"]


def test_following_begins_where_the_past_ended_and_ctrl_c_ends_it_without_a_trace(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(registry, "past")
    take, num_takes = Follower.take, 0

    def take_twice(following: Follower) -> None:
        nonlocal num_takes
        num_takes += 1
        assert following.cursor != EventCursor()
        if num_takes == 3:
            raise KeyboardInterrupt
        log(registry, f"new {num_takes}")
        take(following)

    monkeypatch.setattr(Follower, "take", take_twice)
    monkeypatch.setattr(events, "POLL_SECONDS", 0)
    assert [event["subject_id"] for event in told("--follow")] == ["past", "new 1", "new 2"]
