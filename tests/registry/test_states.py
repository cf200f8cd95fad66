import pytest

from registry.errors import IllegalTransition
from registry.states import (
    TRANSITIONS,
    CheckpointState,
    DeploymentState,
    EvaluationState,
    JobState,
    Outcome,
    Priority,
    State,
    check_transition,
    is_final,
)

KINDS = (JobState, CheckpointState, EvaluationState, DeploymentState)
STATES = [state for kind in KINDS for state in kind]
FIRST = [JobState.SUBMITTED, CheckpointState.WRITING, EvaluationState.REQUESTED, DeploymentState.PLANNED]


def steps_from(state: State) -> frozenset[State]:
    return TRANSITIONS[type(state)][state]


def reachable(start: State) -> set[State]:
    found, todo = {start}, [start]
    while todo:
        for after in steps_from(todo.pop()) - found:
            found.add(after)
            todo.append(after)
    return found


def test_every_state_of_every_kind_has_its_row_in_the_table() -> None:
    assert {kind: set(rows) for kind, rows in TRANSITIONS.items()} == {kind: set(kind) for kind in KINDS}


def test_no_step_leads_to_another_kind_of_record_or_to_itself() -> None:
    for before in STATES:
        assert all(type(after) is type(before) and after != before for after in steps_from(before))


@pytest.mark.parametrize("first", FIRST)
def test_every_state_is_reached_from_the_first_of_its_kind(first: State) -> None:
    assert reachable(first) == set(type(first))


@pytest.mark.parametrize("before", STATES)
def test_a_step_is_legal_exactly_if_the_table_has_it(before: State) -> None:
    for after in STATES:
        if type(before) is type(after) and after in steps_from(before):
            check_transition(before, after=after)
            continue
        with pytest.raises(IllegalTransition, match=f"{type(before).__name__} cannot go from {before} to"):
            check_transition(before, after=after)


def test_an_answer_that_comes_after_the_evaluation_was_given_up_is_taken() -> None:
    check_transition(EvaluationState.FAILED, after=EvaluationState.ANSWERED)
    check_transition(EvaluationState.FAILED, after=EvaluationState.REQUESTED)


def test_states_of_two_kinds_with_one_name_are_not_confused() -> None:
    assert JobState.FAILED == EvaluationState.FAILED
    with pytest.raises(IllegalTransition):
        check_transition(EvaluationState.REQUESTED, after=JobState.FAILED)


def test_the_error_names_the_legal_steps() -> None:
    with pytest.raises(IllegalTransition) as caught:
        check_transition(DeploymentState.SYNCING, after=DeploymentState.ACTIVE)
    assert caught.value.remedy == "From syncing it can go to failed, verified."


def test_the_final_states() -> None:
    assert [repr(state) for state in STATES if is_final(state)] == [
        repr(state)
        for state in (
            JobState.SUCCEEDED,
            JobState.STOPPED,
            JobState.FAILED,
            JobState.REJECTED,
            JobState.CANCELLED,
            CheckpointState.RETIRED,
            EvaluationState.ANSWERED,
            DeploymentState.FAILED,
        )
    ]
    with pytest.raises(IllegalTransition, match=r"nothing: it is final"):
        check_transition(JobState.SUCCEEDED, after=JobState.QUEUED)


def test_no_unjudged_or_quarantined_checkpoint_is_ever_accepted() -> None:
    leading = {state for state in CheckpointState if CheckpointState.ACCEPTED in steps_from(state)}
    assert leading == {CheckpointState.CANDIDATE}
    assert reachable(CheckpointState.QUARANTINED) == {CheckpointState.QUARANTINED, CheckpointState.RETIRED}


def test_only_a_verified_or_formerly_served_release_becomes_active() -> None:
    leading = {state for state in DeploymentState if DeploymentState.ACTIVE in steps_from(state)}
    assert leading == {DeploymentState.VERIFIED, DeploymentState.SUPERSEDED, DeploymentState.ROLLED_BACK}


def test_priorities_are_ranked_high_before_normal_before_low() -> None:
    assert sorted(Priority, key=lambda priority: priority.rank) == ["high", "normal", "low"]
    assert Priority.HIGH.rank == 0


def test_only_pass_is_called_pass() -> None:
    assert [outcome for outcome in Outcome if outcome == "pass"] == [Outcome.PASS]
