"""Whatever is thrown at the four doors: an answer or one sentence, and never a half-made job.

`make fuzz CASES=5000` throws more; a failure prints the smallest request that shows it.
"""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.messages import TrainingSubmission
from tasks.api import Tandem
from tests.fuzz.doors import (
    EXIT_CODES,
    Doors,
    anything,
    command_lines,
    contents,
    file_names,
    names,
    nothing_but_our_errors,
    requests,
    task_requests,
)

pytestmark = [pytest.mark.integration, pytest.mark.fuzz, pytest.mark.timeout(3600)]

CASES = int(os.environ.get("CASES") or 400) // 4
often = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@often
@given(request=task_requests())
def test_tasks_answer_or_say_one_sentence(doors: Doors, request: tuple[str, dict[str, Any]]) -> None:
    name, kwargs = request
    with nothing_but_our_errors():
        doors.call(name, kwargs)
    doors.check()


@often
@given(fields=requests(TrainingSubmission), job_id=names | st.text(max_size=20), value=anything)
def test_the_python_api_answers_or_says_one_sentence(
    doors: Doors, fields: dict[str, Any], job_id: str, value: Any
) -> None:
    client = Tandem(doors.context.settings)
    known = {"dataset", "priority", "name", "parent", "hyperparameters", "force", "after"}
    with nothing_but_our_errors():
        options = {name: found for name, found in fields.items() if name in known}
        client.submit(options.pop("dataset", "good.jsonl"), **options)
    with nothing_but_our_errors():
        client.job(job_id).stop()
    with nothing_but_our_errors():
        client.drain(value)
    doors.check()


@often
@given(arguments=command_lines())
def test_the_command_line_exits_with_0_1_or_2_and_shows_no_traceback(
    doors: Doors, arguments: list[str]
) -> None:
    code, printed = doors.run(arguments)
    assert code in EXIT_CODES
    assert "Traceback" not in printed
    doors.check()


@often
@given(folder=st.sampled_from(["", "high", "normal", "low"]), name=file_names, content=contents)
def test_a_file_in_the_inbox_becomes_a_job_or_is_moved_aside(
    doors: Doors, folder: str, name: str, content: bytes
) -> None:
    doors.drop(folder, name, content)
    if not name.startswith("."):
        assert not (doors.context.settings.paths.inbox / folder / name).exists()
    doors.check()
