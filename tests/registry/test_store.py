import math
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydantic import ValidationError

from registry.errors import IllegalTransition, NotFound, RegistryUnavailable, StaleWrite, ValueRefused
from registry.records import Dataset, Event, Host, TrainingJob
from registry.states import JobState
from registry.store import Registry
from registry.testing import START, add_queued_job, make_dataset, make_job


def test_a_record_comes_back_as_it_went_in(registry: Registry) -> None:
    job = make_job(hyperparameters={"learning_rate": 0.1, "list": [1, None]})
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
        tx.add(job, actor="me")
    with registry.reading() as tx:
        assert tx.get(TrainingJob, job.id) == job
        assert tx.get(Dataset, "ds-1") == make_dataset()


def test_an_unknown_id_is_named(registry: Registry) -> None:
    with registry.reading() as tx, pytest.raises(NotFound, match="no TrainingJob 'job-x'"):
        tx.get(TrainingJob, "job-x")


def test_every_change_of_state_leaves_an_event_with_who_when_and_why(registry: Registry) -> None:
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
        tx.add(make_job(), actor="me", reason="a file")
        tx.transition(make_job(), to=JobState.QUEUED, actor="control", reason="checked", queued_at=tx.now)
    with registry.reading() as tx:
        first, second = sorted(tx.find(Event, subject_id="job-aaaaaa"), key=lambda event: event.id or 0)
    assert (first.before, first.after, first.actor, first.reason) == (None, "submitted", "me", "a file")
    assert (second.before, second.after, second.actor, second.at) == ("submitted", "queued", "control", START)


def test_a_transition_from_a_state_that_has_passed_is_stale(registry: Registry) -> None:
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
        tx.add(make_job(), actor="me")
        seen = tx.get(TrainingJob, "job-aaaaaa")
        tx.transition(seen, to=JobState.CANCELLED, actor="me")
        with pytest.raises(StaleWrite, match="moved on"):
            tx.transition(seen, to=JobState.QUEUED, actor="me")


def test_a_step_that_the_table_lacks_is_refused(registry: Registry) -> None:
    with registry.transaction() as tx, pytest.raises(IllegalTransition, match="submitted to succeeded"):
        tx.transition(make_job(), to=JobState.SUCCEEDED, actor="me")


def test_adding_an_id_twice_is_stale_and_keeps_the_first(registry: Registry) -> None:
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
    with pytest.raises(StaleWrite), registry.transaction() as tx:
        tx.add(make_dataset(name="other"), actor="me")
    with registry.reading() as tx:
        assert tx.get(Dataset, "ds-1").name == "words"


def test_an_error_undoes_the_whole_transaction(registry: Registry) -> None:
    with pytest.raises(RuntimeError), registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
        raise RuntimeError
    with registry.reading() as tx:
        assert tx.find(Dataset) == []
        assert tx.find(Event) == []


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="timezone"):
        make_dataset(created_at=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_registry_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    missing = Registry(f"sqlite:///{tmp_path}/no/such/directory/tandem.db")
    with pytest.raises(RegistryUnavailable, match="cannot be used"), missing.transaction():
        pass


def test_reading_makes_no_database_and_says_what_does(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/tandem.db")
    wanted = "There is no registry yet: .*`tandem up` makes it"
    with pytest.raises(RegistryUnavailable, match=wanted), registry.reading():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_waits_too_long_for_another_says_so_and_a_reader_never_waits(
    registry: Registry,
) -> None:
    url = registry.engine.url.render_as_string(hide_password=False)
    impatient = Registry(url, busy_timeout_ms=50)
    with registry.transaction() as tx:
        add_queued_job(tx)
        with pytest.raises(RegistryUnavailable, match="cannot be used"), impatient.transaction():
            pass
        with impatient.reading() as reading:
            assert reading.find(TrainingJob) == []
    with impatient.transaction() as later:
        assert len(later.find(TrainingJob)) == 1
    impatient.engine.dispose()


def test_a_forked_process_opens_a_connection_of_its_own(registry: Registry) -> None:
    with registry.reading() as tx:
        before = tx.connection.connection.dbapi_connection
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with registry.transaction() as tx:
            is_same = tx.connection.connection.dbapi_connection is before
            tx.add(make_dataset(id="ds-child"), actor="child")
        os.write(writer, b"same" if is_same else b"own")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 10) == b"own"
    with registry.reading() as tx:
        assert tx.connection.connection.dbapi_connection is before
        assert tx.get(Dataset, "ds-child")


def test_times_come_back_in_aware_utc_whatever_zone_they_were_in(registry: Registry) -> None:
    far = timezone(timedelta(hours=-9, minutes=-30))
    with registry.transaction() as tx:
        tx.add(make_dataset(created_at=START.astimezone(far)), actor="me")
    with registry.reading() as tx:
        found = tx.get(Dataset, "ds-1").created_at
        (logged,) = tx.find(Event)
    assert (found, found.tzinfo, logged.at, logged.at.tzinfo) == (START, UTC, START, UTC)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_nothing_is_saved(registry: Registry, bad: float) -> None:
    with pytest.raises((ValueRefused, ValidationError)), registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
        tx.add(make_job(hyperparameters={"learning_rate": [bad]}), actor="me")
    with registry.reading() as tx:
        assert tx.find(Dataset) == []


def test_a_nul_in_a_text_is_shown_as_such_and_in_json_it_is_kept(registry: Registry) -> None:
    job = make_job(name="a\0b", hyperparameters={"key": "a\0b"})
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="me")
        tx.add(job, actor="me", reason="last words: \0")
    with registry.reading() as tx:
        found = tx.get(TrainingJob, job.id)
        assert (found.name, found.hyperparameters) == ("a\ufffdb", {"key": "a\0b"})
        assert tx.find(Event, subject_id=job.id)[0].reason == "last words: \ufffd"


def test_an_id_that_no_row_can_have_is_not_found_or_refused(registry: Registry) -> None:
    with pytest.raises((NotFound, ValueRefused)), registry.reading() as tx:
        tx.get(TrainingJob, "job-\0")
    with pytest.raises(NotFound), registry.reading() as tx:
        tx.get(TrainingJob, "x" * 10_000)


@pytest.mark.parametrize("sought", ["\ud800", "job-\udcff"])
def test_half_a_character_is_refused_in_one_sentence_that_can_be_printed(
    registry: Registry, sought: str
) -> None:
    with pytest.raises(ValueRefused) as caught, registry.reading() as tx:
        tx.get(TrainingJob, sought)
    assert str(caught.value).encode()


def test_a_moment_is_the_same_only_until_somebody_writes(open_registry: Callable[[], Registry]) -> None:
    one, other = open_registry(), open_registry()

    def moment(*, of: Registry) -> object:
        with of.reading() as tx:
            tx.find(Host)
            return tx.moment()

    for writer in (one, other):
        before = moment(of=one)
        with one.transaction() as tx:
            assert tx.moment() == before
        assert moment(of=one) == before
        with writer.transaction() as tx:
            tx.insert(Host(id=f"host-{id(writer)}", seen_at=tx.now))
        assert moment(of=one) != before
        with one.transaction() as tx:
            assert tx.moment() != before
