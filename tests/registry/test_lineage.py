import pytest

from registry import lineage
from registry.errors import NotFound
from registry.store import Registry
from registry.testing import START, ManualClock, make_checkpoint, make_dataset, make_deployment, make_job


def add_ended(registry: Registry, *, number: int, state: str, checkpoint_state: str | None) -> None:
    with registry.transaction() as tx:
        ended = tx.now
        if checkpoint_state is not None:
            made = make_checkpoint(id=f"ckpt-{number}", state=checkpoint_state, created_at=ended)
            tx.add(made, actor="test")
        final = None if checkpoint_state is None else f"ckpt-{number}"
        job = make_job(id=f"job-{number}", state=state, finished_at=ended, final_checkpoint_id=final)
        tx.add(job, actor="test")


def tip(registry: Registry) -> str:
    with registry.reading() as tx:
        return lineage.parent_for(tx, wish="tip").id


def prepare(registry: Registry) -> None:
    with registry.transaction() as tx:
        tx.add(make_dataset(), actor="test")
        tx.add(make_checkpoint(id="base-1", origin="base", created_at=START), actor="test")


def test_training_goes_on_from_the_newest_end_that_will_do(registry: Registry, clock: ManualClock) -> None:
    prepare(registry)
    assert tip(registry) == "base-1"
    ends = [
        ("succeeded", "accepted", "ckpt-0"),
        ("stopped", "complete", "ckpt-1"),
        ("succeeded", "quarantined", "ckpt-1"),
        ("stopped", None, "ckpt-1"),
        ("failed", "complete", "ckpt-1"),
        ("succeeded", "candidate", "ckpt-5"),
    ]
    for number, (state, checkpoint_state, wanted) in enumerate(ends):
        clock.advance(1)
        add_ended(registry, number=number, state=state, checkpoint_state=checkpoint_state)
        assert tip(registry) == wanted, (state, checkpoint_state)


def test_what_is_served_comes_before_an_older_end_but_not_before_a_younger(
    registry: Registry, clock: ManualClock
) -> None:
    prepare(registry)
    add_ended(registry, number=0, state="succeeded", checkpoint_state="accepted")
    clock.advance(1)
    with registry.transaction() as tx:
        tx.add(make_checkpoint(id="ckpt-served", state="accepted", created_at=tx.now), actor="test")
        served = make_deployment(checkpoint_id="ckpt-served", started_at=tx.now)
        tx.add(served, actor="test")
    clock.advance(1)
    add_ended(registry, number=1, state="succeeded", checkpoint_state="quarantined")
    assert tip(registry) == "ckpt-served"
    clock.advance(1)
    add_ended(registry, number=2, state="succeeded", checkpoint_state="complete")
    assert tip(registry) == "ckpt-2"


def test_a_job_that_has_begun_goes_on_from_its_parent_though_that_was_quarantined(registry: Registry) -> None:
    prepare(registry)
    with registry.transaction() as tx:
        for state in ("quarantined", "retired"):
            tx.add(make_checkpoint(id=f"ckpt-{state}", state=state), actor="test")
    with registry.reading() as tx:
        begun = make_job(parent_checkpoint_id="ckpt-quarantined")
        assert lineage.parent_of(tx, begun).id == "ckpt-quarantined"
        assert lineage.parent_of(tx, make_job()).id == "base-1"
        # One that only wishes for it has not begun; of one that is retired the files may be gone.
        for refused in (make_job(parent="ckpt-quarantined"), make_job(parent_checkpoint_id="ckpt-retired")):
            with pytest.raises(NotFound, match="training cannot start from it"):
                lineage.parent_of(tx, refused)
