import pytest

from registry import hosts, queue
from registry.errors import NotFound
from registry.records import Event, TrainingJob
from registry.states import JobState, Priority
from registry.store import Registry
from registry.testing import add_queued_job

ALL = tuple(Priority)


def claim(registry: Registry, host: str) -> str | None:
    with registry.transaction() as tx:
        found = queue.claim_next(tx, queues=ALL, holder=f"{host}:1", seconds=60, host=host)
    return None if found is None else found[0].id


@pytest.fixture
def two_hosts(registry: Registry) -> Registry:
    with registry.transaction() as tx:
        hosts.saw(tx, name="big", role="train")
        hosts.saw(tx, name="small", role="intelligence")
        hosts.saw(tx, name="small", role="train")
    return registry


def test_a_host_is_remembered_with_all_its_roles(two_hosts: Registry) -> None:
    with two_hosts.reading() as tx:
        assert hosts.known(tx, name="small").roles == ("intelligence", "train")


def test_a_drained_host_takes_nothing_new_and_another_does(two_hosts: Registry) -> None:
    with two_hosts.transaction() as tx:
        add_queued_job(tx)
        hosts.drain(tx, name="big", actor="me", reason="new fan")
        assert hosts.obstacle(tx, name="big").startswith("big is drained: new fan; `tandem undrain big`")
    assert claim(two_hosts, "big") is None
    assert claim(two_hosts, "small") == "job-aaaaaa"


def test_an_undrained_host_takes_work_again(two_hosts: Registry) -> None:
    with two_hosts.transaction() as tx:
        add_queued_job(tx)
        hosts.drain(tx, name="big", actor="me")
        hosts.undrain(tx, name="big", actor="me")
        steps = [(event.before, event.after) for event in tx.find(Event, subject_id="big")]
    assert steps == [("taking work", "draining"), ("draining", "taking work")]
    assert claim(two_hosts, "big") == "job-aaaaaa"


@pytest.mark.parametrize("end", [JobState.SUCCEEDED, JobState.FAILED, JobState.PAUSED])
def test_a_host_that_pauses_after_a_job_works_on_until_that_job_is_done(
    two_hosts: Registry, end: JobState
) -> None:
    with two_hosts.transaction() as tx:
        add_queued_job(tx, id="this")
        add_queued_job(tx, id="next")
        hosts.drain(tx, name="big", after_job_id="this", actor="me")
    assert claim(two_hosts, "big") == "this"
    with two_hosts.transaction() as tx:
        tx.transition(tx.get(TrainingJob, "this"), to=end, actor="big")
    assert claim(two_hosts, "big") is None
    assert claim(two_hosts, "small") == "next"


def test_a_host_that_nobody_saw_is_refused_with_those_that_were(two_hosts: Registry) -> None:
    with two_hosts.transaction() as tx, pytest.raises(NotFound, match="'bgi'.*Hosts are: big, small"):
        hosts.drain(tx, name="bgi", actor="me")


def test_training_stands_still_only_if_every_training_host_is_held(registry: Registry) -> None:
    with registry.transaction() as tx:
        assert hosts.standstill(tx) == ""
        hosts.saw(tx, name="big", role="train")
        hosts.saw(tx, name="eyes", role="intelligence")
        hosts.note_obstacle(tx, name="big", obstacle="job-a waits: gpu-0 is held.", actor="big:1")
        assert hosts.standstill(tx) == "job-a waits: gpu-0 is held."
        hosts.saw(tx, name="small", role="train")
        assert hosts.standstill(tx) == ""
        hosts.drain(tx, name="small", actor="me")
        assert hosts.standstill(tx).startswith("job-a waits: gpu-0 is held.; small is drained")
        hosts.note_obstacle(tx, name="big", obstacle="", actor="big:1")
        assert hosts.standstill(tx) == ""
