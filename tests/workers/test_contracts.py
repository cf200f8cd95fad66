import pytest

from workers.contracts import QUEUES, TASKS, contract_of, parse_request
from workers.errors import RequestError

PUBLIC_TASKS = {
    "training.submit": "control",
    "training.run": "normal",
    "training.pause": "control",
    "training.resume": "control",
    "training.skip": "control",
    "training.stop": "control",
    "training.cancel": "control",
    "training.retry": "control",
    "training.set_priority": "control",
    "training.move": "control",
    "host.drain": "control",
    "host.undrain": "control",
    "inbox.scan": "control",
    "checkpoint.import": "control",
    "suite.build": "control",
    "evaluation.send": "control",
    "evaluation.fetch": "control",
    "evaluation.run": "evaluation",
    "evaluation.record": "control",
    "evaluation.defer": "control",
    "regression.check": "evaluation",
    "regression.record": "control",
    "testing.run": "intelligence",
    "testing.record": "control",
    "judgement.sweep": "control",
    "calibration.run": "intelligence",
    "calibration.record": "control",
    "ranking.update": "control",
    "deployment.sync_best": "control",
    "deployment.rollback": "control",
    "deployment.watch": "control",
    "safety.sweep": "control",
}


def test_public_tasks_and_their_queues_are_frozen() -> None:
    assert {name: str(contract.queue) for name, contract in TASKS.items()} == PUBLIC_TASKS


def test_queues_are_frozen_and_in_order() -> None:
    assert QUEUES == ("high", "normal", "low", "evaluation", "intelligence", "control")


def test_a_misspelt_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="Did you mean training.submit"):
        contract_of("training.sumbit")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "dataset is missing"),
        ({"dataset": "a", "priorty": "high"}, "priorty is not a field"),
        ({"dataset": "a", "priority": "urgent"}, "priority='urgent'.*'high', 'normal' or 'low'"),
        ({"dataset": 7}, "dataset='7'"),
        ({"dataset": ""}, "dataset=''"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_what_the_task_takes(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_request("training.submit", fields=fields)
    assert "It takes: dataset, [priority]" in str(caught.value)


def test_an_argument_without_a_name_is_refused_with_the_names() -> None:
    with pytest.raises(RequestError, match="'data.jsonl' has no name. By name it takes: dataset"):
        parse_request("training.submit", fields={}, values=["data.jsonl"])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            {"before_id": "job-b", "to_end": True},
            "before_id and to_end cannot both be meant",
        ),
        ({"before_id": "job-a"}, "before_id names the job itself"),
    ],
)
def test_a_job_can_be_moved_to_one_place_alone(place: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=f"^training.move: {message}"):
        parse_request("training.move", fields={"job_id": "job-a", **place})
