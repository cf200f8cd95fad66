from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from deploy.errors import NotDeployable
from deploy.plan import check_return, choose, plan, release_id
from registry.records import Checkpoint, Deployment, Ranking
from registry.states import CheckpointState, DeploymentState
from registry.testing import START, make_checkpoint, make_ranking

SHA = "1a2b3c4d" + "0" * 56


def accepted(**changes: Any) -> Checkpoint:
    return make_checkpoint(state=CheckpointState.ACCEPTED, weights_sha256=SHA, **changes)


def served(checkpoint: Checkpoint, *, generation: int = 4, state: str = "active") -> Deployment:
    planned = plan(checkpoint, active=None, generation=generation, reason="test", now=START)
    assert planned is not None
    return planned.changed(state=DeploymentState(state))


def test_the_best_ranked_is_served_unless_another_is_named() -> None:
    ranking = make_ranking("best", "second")
    assert choose(ranking=ranking, requested_checkpoint_id=None) == "best"
    assert choose(ranking=ranking, requested_checkpoint_id="second") == "second"
    assert choose(ranking=None, requested_checkpoint_id="named") == "named"


@pytest.mark.parametrize(
    ("ranking", "reason"),
    [(None, "No ranking was made yet"), (make_ranking(note="2 of 3 are there."), "2 of 3 are there")],
)
def test_without_a_ranking_there_is_no_best_and_the_reason_is_told(
    ranking: Ranking | None, reason: str
) -> None:
    with pytest.raises(NotDeployable, match=reason):
        choose(ranking=ranking, requested_checkpoint_id=None)


def test_a_plan_names_its_release_by_generation_and_weights() -> None:
    checkpoint = accepted()
    planned = plan(checkpoint, active=None, generation=12, reason="best-ranked", now=START)
    assert planned == Deployment(
        id="r000012-1a2b3c4d",
        generation=12,
        checkpoint_id=checkpoint.id,
        state=DeploymentState.PLANNED,
        weights_sha256=SHA,
        reason="best-ranked",
        started_at=START,
    )


@pytest.mark.parametrize("state", [state for state in CheckpointState if state != "accepted"])
def test_only_an_accepted_checkpoint_is_ever_planned(state: CheckpointState) -> None:
    checkpoint = accepted().changed(state=state)
    for active in (None, served(accepted())):
        with pytest.raises(NotDeployable, match=f"is {state}: only accepted"):
            plan(checkpoint, active=active, generation=9, reason="asked", now=START)


def test_nothing_is_to_do_where_the_best_is_served_already() -> None:
    checkpoint = accepted()
    assert plan(checkpoint, active=served(checkpoint), generation=5, reason="best", now=START) is None


def test_another_checkpoint_is_planned_beside_the_served_one() -> None:
    other = accepted(id="ckpt-other")
    planned = plan(other, active=served(accepted()), generation=5, reason="best", now=START + timedelta(1))
    assert planned is not None
    assert planned.checkpoint_id == "ckpt-other"


@pytest.mark.parametrize("generation", [3, 4])
def test_a_generation_only_grows(generation: int) -> None:
    with pytest.raises(NotDeployable, match=f"Generation {generation} is not above 4"):
        plan(accepted(id="other"), active=served(accepted()), generation=generation, reason="", now=START)


def test_release_ids_sort_as_their_generations_do() -> None:
    ids = [release_id(generation, weights_sha256=SHA) for generation in (9, 10, 900, 1000)]
    assert ids == sorted(ids)


@pytest.mark.parametrize("state", ["superseded", "rolled_back"])
@pytest.mark.parametrize("of", ["accepted", "retired"])
def test_a_release_that_was_served_may_return(state: str, of: str) -> None:
    checkpoint = accepted()
    check_return(served(checkpoint, state=state), checkpoint=checkpoint.changed(state=CheckpointState(of)))


def test_a_release_of_a_quarantined_checkpoint_never_returns() -> None:
    checkpoint = accepted()
    quarantined = checkpoint.changed(state=CheckpointState.QUARANTINED)
    with pytest.raises(NotDeployable, match="which is quarantined"):
        check_return(served(checkpoint, state="superseded"), checkpoint=quarantined)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("active", "it is served already"),
        ("failed", "it was never served"),
        ("planned", "has not ended"),
        ("syncing", "has not ended"),
        ("verified", "has not ended"),
    ],
)
def test_a_release_that_was_not_served_before_cannot_return(state: str, reason: str) -> None:
    checkpoint = accepted()
    with pytest.raises(NotDeployable, match=f"is {state}: .*{reason}"):
        check_return(served(checkpoint, state=state), checkpoint=checkpoint)
