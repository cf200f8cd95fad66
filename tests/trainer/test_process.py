"""`python -m trainer` as a supervisor meets it: exit codes, pipes and signals."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.errors import TandemError
from registry.manifests import verify
from trainer import process
from trainer.config.job import JobConfig
from trainer.control import FlagControl
from trainer.errors import (
    ConfigError,
    DataError,
    DiskFull,
    Diverged,
    ModelError,
    Orphaned,
    OutOfMemory,
    TrainerError,
)
from trainer.messages import (
    CheckpointSaved,
    ChildMessage,
    Failed,
    Finished,
    Progress,
    Started,
    format_line,
    parse_line,
)
from trainer.ranks import check_ranks

JobFactory = Callable[..., JobConfig]
WriteJob = Callable[..., Path]
Start = Callable[..., subprocess.Popen[bytes]]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LONG = {"num_epochs": 900, "tokens_per_batch": 120}


@pytest.fixture
def write_job(job: JobFactory, tmp_path: Path) -> WriteJob:
    def write(**sections: Any) -> Path:
        path = tmp_path / "job.json"
        path.write_text(job(**sections).model_dump_json())
        return path

    return write


def because(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (DataError("bad rows"), "data", 3),
        (ConfigError("bad value", field="a"), "config", 2),
        (Diverged("nan"), "diverged", 4),
        (OutOfMemory("full"), "out_of_memory", 5),
        (MemoryError(), "out_of_memory", 5),
        (ModelError("no weights"), "model", 6),
        (DiskFull("full"), "disk", 7),
        (TrainerError("odd"), "internal", 1),
        (TandemError("odd"), "internal", 1),
        (ZeroDivisionError("odd"), "internal", 1),
        (OSError(errno.ENOSPC, "full"), "disk", 7),
        (OSError(errno.EIO, "broken"), "disk", 7),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "network", 10),
        (TimeoutError("timed out"), "network", 10),
        (because(TrainerError("odd"), OSError(errno.ESTALE, "stale")), "network", 10),
        (because(ConfigError("bad", field="a"), OSError(errno.ENOSPC, "full")), "disk", 7),
        (because(ModelError("no weights"), OSError("not there")), "model", 6),
        (because(OutOfMemory("full"), OSError(errno.ENOSPC, "full")), "out_of_memory", 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_failure_has_its_kind_and_exit_code(
    write_job: WriteJob, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(process, "_train", fail)
    said: list[ChildMessage] = []
    assert process.run(write_job(), emit=said.append, control=FlagControl()) == code
    assert [message.kind for message in said if isinstance(message, Failed)] == [kind]


def test_a_log_on_the_full_disk_keeps_no_failure_from_being_told(
    write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(process, "_train", fail)
    said: list[ChildMessage] = []
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert process.run(write_job(), emit=said.append, control=FlagControl()) == 7
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert [message.kind for message in said if isinstance(message, Failed)] == ["disk"]


def test_an_orphan_says_nothing(write_job: WriteJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Orphaned("nobody listens")

    monkeypatch.setattr(process, "_train", fail)
    said: list[ChildMessage] = []
    assert process.run(write_job(), emit=said.append, control=FlagControl()) == 8
    assert said == []


def test_exit_codes_are_distinct() -> None:
    assert len(set(process.EXIT_CODES.values())) == len(process.EXIT_CODES)


def test_a_bad_job_file_is_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.json"
    path.write_text('{"learning_rate": 1}')
    said: list[ChildMessage] = []
    assert process.run(path, emit=said.append, control=FlagControl()) == 2
    (failed,) = said
    assert isinstance(failed, Failed)
    assert failed.kind == "config"
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc': it is a number, 1 or more."),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set."),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK is 'x': it is a number, 0 or more."),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but the highest"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
    ],
)
def test_what_a_launcher_cannot_mean_is_refused(
    write_job: WriteJob,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variables: dict[str, str],
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process, "claim_stdout", lambda: os.dup(1))
    assert process.main([str(write_job())]) == 2
    captured = capfd.readouterr()
    failed = parse_line(captured.out)
    assert isinstance(failed, Failed)
    assert failed.kind == "config"
    assert failed.message.startswith(said)
    assert "torchrun" in failed.remedy
    assert "Traceback" not in captured.err


def test_a_rank_among_one_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "x")
    check_ranks()


@pytest.mark.parametrize("number", ["0", "-2", "two"])
def test_fewer_processes_than_one_are_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        process.main(["job.json", "--processes", number])
    assert "argument --processes: " in capsys.readouterr().err


def test_a_failure_in_half_a_character_is_told_all_the_same(
    write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise DataError("\ud800 is odd", remedy="Remove \ud800.")

    monkeypatch.setattr(process, "_train", fail)
    said: list[ChildMessage] = []
    assert process.run(write_job(), emit=said.append, control=FlagControl()) == 3
    assert b"ud800 is odd" in format_line(said[0])


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[subprocess.Popen[bytes]] = []

    def spawn(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [sys.executable, "-m", "trainer", *map(str, arguments)]
        child = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def messages_of(child: subprocess.Popen[bytes]) -> Iterator[ChildMessage]:
    """Every line must be a message: a torn or foreign one fails the test."""
    assert child.stdout is not None
    return map(parse_line, child.stdout)


def wait_for(kind: type[Any], messages: Iterator[ChildMessage]) -> Any:
    return next(message for message in messages if isinstance(message, kind))


def say(child: subprocess.Popen[bytes], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line.encode() + b"\n")
    child.stdin.flush()


@pytest.mark.integration
def test_a_child_trains_to_its_end_and_says_nothing_but_messages(start: Start, write_job: WriteJob) -> None:
    child = start(write_job())
    said = list(messages_of(child))
    assert child.wait() == 0
    assert isinstance(said[0], Started)
    assert isinstance(said[-1], Finished)
    assert any(isinstance(message, Progress) for message in said)
    assert verify(Path(str(said[-1].result.final_checkpoint))).is_final


@pytest.mark.integration
@pytest.mark.parametrize(("command", "state"), [("stop", "stopped"), ("pause", "paused")])
def test_a_command_saves_and_ends(start: Start, write_job: WriteJob, command: str, state: str) -> None:
    child = start(write_job(hyperparameters=LONG))
    messages = messages_of(child)
    wait_for(Progress, messages)
    say(child, "nonsense")
    say(child, json.dumps({"command": command}))
    saved, finished = [message for message in messages if isinstance(message, CheckpointSaved | Finished)]
    assert child.wait() == 0
    assert finished.result.state == state
    assert finished.result.final_checkpoint == saved.path
    assert verify(Path(saved.path)).step == finished.result.step > 0


@pytest.mark.integration
def test_sigterm_is_a_stop(start: Start, write_job: WriteJob) -> None:
    child = start(write_job(hyperparameters=LONG))
    messages = messages_of(child)
    wait_for(Progress, messages)
    child.send_signal(signal.SIGTERM)
    assert wait_for(Finished, messages).result.state == "stopped"
    assert child.wait() == 0


@pytest.mark.integration
def test_an_orphan_ends_at_once_and_writes_nothing_more(
    start: Start, write_job: WriteJob, tmp_path: Path
) -> None:
    child = start(write_job(hyperparameters=LONG))
    messages = messages_of(child)
    wait_for(Progress, messages)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=10) == process.EXIT_CODES["orphaned"]
    assert not any(isinstance(message, CheckpointSaved | Finished | Failed) for message in messages)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.integration
def test_a_supervisor_that_stops_reading_is_gone_too(start: Start, write_job: WriteJob) -> None:
    child = start(write_job(hyperparameters=LONG))
    wait_for(Progress, messages_of(child))
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(timeout=30) == process.EXIT_CODES["orphaned"]


@pytest.mark.integration
def test_alone_it_does_not_listen(start: Start, write_job: WriteJob) -> None:
    child = start("--alone", write_job(), stdin=subprocess.DEVNULL)
    assert isinstance(list(messages_of(child))[-1], Finished)
    assert child.wait() == 0


@pytest.mark.integration
def test_a_bad_job_exits_2_with_a_message_on_both_streams(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text("{")
    child = start(path, stdin=subprocess.DEVNULL)
    out, err = child.communicate()
    failed = parse_line(out)
    assert child.returncode == 2
    assert isinstance(failed, Failed)
    assert failed.kind == "config"
    assert b"Traceback" not in err


@pytest.mark.integration
def test_bad_rows_exit_3(start: Start, write_job: WriteJob, write_rows: Callable[..., Path]) -> None:
    rows = write_rows([{"prompt": "a", "completion": ""}], name="bad.jsonl")
    child = start(write_job(data={"path": str(rows)}))
    failed = wait_for(Failed, messages_of(child))
    assert child.wait() == 3
    assert "line 1" in failed.message


@pytest.mark.integration
def test_on_a_terminal_it_shows_a_bar_and_sentences(start: Start, write_job: WriteJob) -> None:
    primary, secondary = pty.openpty()
    child = start(write_job(), stdin=secondary, stdout=secondary)
    os.close(secondary)
    text = b""
    while chunk := _read_terminal(primary):
        text += chunk
    os.close(primary)
    assert child.wait() == 0
    assert b"Training" in text
    assert b"Finished after step" in text
    assert b'"type"' not in text


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux's word for the end of a terminal
        return b""


@pytest.mark.integration
def test_help_is_for_people(start: Start) -> None:
    out, _ = start("--help").communicate()
    assert b"JOB.json" in out
    assert b"Exit codes" in out
