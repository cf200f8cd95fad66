"""`checkpoint compare`, as a person and as a program see it."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from registry.store import Registry
from registry.testing import make_suite
from tasks.cli.main import cli
from workers.testing_evaluations import add_evaluated, right_on


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["checkpoint", "compare", *arguments])


@pytest.fixture
def pair(registry: Registry) -> Registry:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        add_evaluated(tx, "before", examples=right_on(10, loss=1.0))
        add_evaluated(tx, "after", examples=right_on(30, loss=0.5), parent_checkpoint_id="before")
    return registry


def test_a_person_reads_the_differences_the_changed_answers_and_a_conclusion(pair: Registry) -> None:
    shown = run("before", "after", "--rows", "2").stdout
    assert "Since before: the first on nothing more" in shown
    assert "+0.500" in shown
    assert "Right now, wrong before: 20" in shown
    assert "row-011 (easy) expected 'abc': 'cba' -> 'abc'" in shown
    assert "row-012" not in shown
    assert "Wrong now, right before: 0" in shown
    assert "The loss is better. The accuracy is better. The score is better." in shown


def test_turned_around_it_is_worse_and_beside_itself_it_may_be_the_same(pair: Registry) -> None:
    assert "The loss is worse. The accuracy is worse." in run("after", "before").stdout
    assert "The loss may be the same. The accuracy may be the same." in run("after", "after").stdout


def test_a_program_reads_strict_json(pair: Registry) -> None:
    told = json.loads(run("before", "after", "--json").stdout)
    assert told["loss"]["difference"]["value"] == -0.5
    assert len(told["gained"]) == 20
    assert told["descent"]["common_checkpoint_id"] == "before"


def test_an_unknown_checkpoint_is_an_error_of_one_line() -> None:
    result = run("nobody", "after")
    assert result.exit_code != 0
