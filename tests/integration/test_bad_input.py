"""What a user gets wrong: one clear message with the remedy, exit 1 or 2, no traceback, no half-made job."""

import json
import os
import socket
from pathlib import Path

import pytest

from registry.records import Dataset, TrainingJob
from tasks.testing import Stack, fresh_environment, left_behind, run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.usefixtures("served")]

ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'

BAD_DATASETS = {
    "empty": ("", "has no rows"),
    "blank": ("\n\n", "has no rows"),
    "not json": (ROW + "{\n", "line 2: not valid JSON"),
    "a list": (ROW + "[]\n", "line 2: a row is a JSON object"),
    "other fields": ('{"text": "x"}\n', "line 1: is in no known form"),
    "wrong role": (ROW.replace("assistant", "asistant"), "line 1: messages[1].role"),
    "empty answer": (ROW.replace('"b"', '" "'), "line 1: messages[1] (assistant) is empty"),
    "no answer": ('{"messages": [{"role": "user", "content": "a"}]}\n', "line 1: messages"),
    "number": (ROW.replace('"b"', "1"), "line 1: messages[1].content"),
}


def says(result: object, *, code: int, words: str) -> None:
    returned, stderr, stdout = (getattr(result, name) for name in ("returncode", "stderr", "stdout"))
    assert returned == code, stderr + stdout
    assert words in " ".join(stderr.split()), stderr
    assert "Traceback" not in stderr + stdout


@pytest.mark.parametrize("kind", BAD_DATASETS)
def test_a_bad_dataset_is_refused_with_line_and_reason(stack: Stack, kind: str) -> None:
    content, words = BAD_DATASETS[kind]
    (stack.work / "bad.jsonl").write_text(content)
    says(stack.tandem("submit", "bad.jsonl"), code=1, words=words)
    with stack.registry.reading() as tx:
        assert tx.find(TrainingJob, name="bad") == []
        assert tx.find(Dataset, name="bad") == []


def test_a_file_that_is_not_utf_8_is_refused(stack: Stack) -> None:
    (stack.work / "latin.jsonl").write_bytes(ROW.replace("b", "é").encode("latin-1"))
    says(stack.tandem("submit", "latin.jsonl"), code=1, words="line 1: not UTF-8")


def test_a_missing_file_and_a_path_outside_the_roots_are_refused(stack: Stack) -> None:
    says(stack.tandem("submit", "none.jsonl"), code=1, words="none.jsonl does not exist")
    says(stack.tandem("submit", "/etc/passwd"), code=1, words="outside the allowed roots")


def test_unknown_options_and_hyperparameters_are_refused(stack: Stack) -> None:
    (stack.work / "good.jsonl").write_text(ROW)
    says(stack.tandem("submit", "good.jsonl", "--fast"), code=2, words="No such option")
    says(stack.tandem("submit", "good.jsonl", "--priority", "urgent"), code=2, words="'urgent'")
    says(stack.tandem("submit", "good.jsonl", "--set", "learning_rat=1"), code=1, words="learning_rat")
    not_a_number = stack.tandem("submit", "good.jsonl", "--set", "learning_rate=NaN")
    says(not_a_number, code=2, words="learning_rate='nan'")
    says(stack.tandem("submit", "good.jsonl", "--set", "oops"), code=2, words="is not name=value")
    with stack.registry.reading() as tx:
        assert tx.find(TrainingJob, name="good") == []


def test_celery_call_refuses_what_is_no_task_and_no_argument(stack: Stack) -> None:
    call = ("celery", "-A", "workers.app", "call")
    says(stack.run(*call, "training.sumbit"), code=1, words="Did you mean training.submit")
    wrong = json.dumps({"datset": "x"})
    says(stack.run(*call, "training.submit", "--kwargs", wrong), code=1, words="dataset is missing")


def test_a_directory_that_is_no_model_is_refused(stack: Stack) -> None:
    (stack.work / "nothing").mkdir(exist_ok=True)
    says(stack.tandem("checkpoint", "import", "nothing"), code=1, words="is not a model directory")


def test_unknown_ids_are_named(stack: Stack) -> None:
    says(stack.tandem("job", "show", "job-none"), code=1, words="no TrainingJob 'job-none'")
    says(stack.tandem("checkpoint", "show", "ckpt-none"), code=1, words="no Checkpoint 'ckpt-none'")
    says(stack.tandem("deploy", "now", "ckpt-none"), code=1, words="no Checkpoint 'ckpt-none'")


def test_a_misspelt_setting_is_refused_at_every_door(stack: Stack) -> None:
    environment = {**stack.environment, "TANDEM_HOEM": "x"}
    for command in (("tandem", "status"), ("celery", "-A", "workers.app", "call", "inbox.scan")):
        result = run(*command, cwd=stack.work, environment=environment)
        says(result, code=2, words="no setting TANDEM_HOEM. Did you mean TANDEM_HOME")


def test_redis_that_is_away_or_refuses_the_password_is_said_plainly(stack: Stack) -> None:
    port = stack.settings.redis.port
    cases = {
        "redis://:wrong@127.0.0.1:1/0": "does not answer",
        f"redis://:wrong@127.0.0.1:{port}/0": "refuses the password",
    }
    (stack.work / "good.jsonl").write_text(ROW)
    for url, words in cases.items():
        environment = {**stack.environment, "TANDEM_REDIS__URL": url}
        for command in (
            ("tandem", "submit", "good.jsonl"),
            ("celery", "-A", "workers.app", "call", "inbox.scan"),
        ):
            result = run(*command, cwd=stack.work, environment=environment)
            says(result, code=1, words=words)
            assert "wrong" not in result.stderr + result.stdout


def test_status_says_unknown_for_workers_when_redis_is_away(stack: Stack) -> None:
    environment = {**stack.environment, "TANDEM_REDIS__URL": "redis://127.0.0.1:1/0"}
    result = run("tandem", "status", "--json", cwd=stack.work, environment=environment)
    assert result.returncode == 0, result.stderr
    states = {part["name"]: part["state"] for part in json.loads(result.stdout)["parts"]}
    assert states["redis"] == "down"
    assert states["train"] == states["control"] == states["intelligence"] == "unknown"


def test_a_second_stack_in_the_same_home_is_refused(stack: Stack) -> None:
    says(stack.tandem("up"), code=1, words="A stack is up already")
    says(stack.tandem("up", "--detach"), code=1, words="A stack is up already")


def test_a_taken_port_is_named_and_nothing_is_left_running(tmp_path: Path) -> None:
    environment = fresh_environment(tmp_path / "home")
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(environment["TANDEM_SERVER__PORT"])))
        other.listen()
        result = run("tandem", "up", cwd=tmp_path, environment=environment)
    says(result, code=1, words="meant for server, is taken by another program")
    assert left_behind(tmp_path / "home") == []


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "TANDEM_HOME": str(tmp_path / "file" / "home")}
    says(run("tandem", "up", cwd=tmp_path, environment=environment), code=2, words="cannot be used")
