"""The four doors to a job without a broker, the requests to throw at them, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from pydantic import BaseModel

import tasks.api
from registry.errors import TandemError
from registry.files import sha256_file
from registry.messages import Nothing
from registry.records import Dataset, Record, TrainingJob
from registry.states import JobState, Priority
from tasks.cli.main import main
from tasks.training import scan
from workers.app import app
from workers.context import Context
from workers.contracts import TASKS, parse_request
from workers.errors import BrokerUnavailable

R = TypeVar("R", bound=Record)

# They train, load a model, talk to a server or wait for Redis: their arguments are fuzzed, their work is not.
ONLY_PARSED = {
    "training.run",
    "evaluation.run",
    "regression.check",
    "deployment.sync_best",
    "deployment.rollback",
    "checkpoint.import",
}
EXIT_CODES = {0, 1, 2}

FILES = ("good.jsonl", "none.jsonl", "folder", "pipe.jsonl", "/etc/passwd", "..", "", "~nobody-there/x")
WORDS = ("-x", "a\0b", "x" * 300, "a/" * 3000, "job-aaaaaaaa", "high", "+2h", "tip", "base", "localhost")
COMMANDS = (
    *("submit", "job list", "job show", "job pause", "job resume", "job stop", "job skip", "job retry"),
    *("job cancel", "job logs", "queue list", "queue move", "queue set-priority", "drain", "undrain"),
    *("checkpoint list", "checkpoint show", "suite build", "suite show", "data validate", "events"),
    *("deploy list", "config show", "", "nonsense"),
)
OPTIONS = (
    *("--json", "--priority", "high", "--set", "a=1", "--set=", "learning_rate=NaN", "--at", "--after"),
    *("--parent", "--name", "--force", "--before", "--to-end", "--limit", "-1", "--help", "--"),
)
HYPERPARAMETERS = ("learning_rate", "num_epochs", "tokens_per_batch", "seed")

names = st.sampled_from([*FILES, *WORDS])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | names
    | st.datetimes().map(str)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def requests(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments for a task: some of its fields, likely and unlikely values, now and then others."""
    fields = dict.fromkeys(model.model_fields, anything)
    if "dataset" in fields:
        fields["dataset"] = st.just("good.jsonl") | names | anything
    if "priority" in fields:
        fields["priority"] = st.sampled_from([str(queue) for queue in Priority]) | anything
    if "hyperparameters" in fields:
        keys = st.sampled_from(HYPERPARAMETERS) | st.text(max_size=8)
        fields["hyperparameters"] = st.dictionaries(keys, anything, max_size=3)
    if "after" in fields:
        fields["after"] = st.lists(names, max_size=2)
    known = st.fixed_dictionaries({}, optional=fields)
    others = st.dictionaries(st.text(max_size=8), anything, max_size=1)
    return known | st.builds(lambda some, other: {**some, **other}, known, others)


def task_requests() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A task's name with its arguments; submission as often as all the others together."""
    every = [st.tuples(st.just(name), requests(contract.request)) for name, contract in sorted(TASKS.items())]
    submission = st.tuples(st.just("training.submit"), requests(TASKS["training.submit"].request))
    return submission | st.one_of(every)


def command_lines() -> st.SearchStrategy[list[str]]:
    """Arguments of `tandem`: commands that steer jobs, with likely and unlikely words after them."""
    words = st.sampled_from(OPTIONS) | names | st.text(max_size=20)
    possible = words.filter(lambda word: "\0" not in word)  # the kernel passes no other
    return st.builds(
        lambda command, rest: [*command.split(), *rest],
        st.sampled_from(COMMANDS),
        st.lists(possible, max_size=5),
    )


rows = st.one_of(
    st.just('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'),
    st.just('{"prompt": "a", "completion": "b"}'),
    st.just('{"messages": ' + "[" * 3000 + "]" * 3000 + "}"),
    st.just('{"prompt": "\\ud800", "completion": "b"}'),
    st.just('{"prompt": NaN, "completion": 1e999}'),
    st.just('{"prompt": "a", "prompt": "b", "completion": ' + "9" * 5000 + "}"),
    anything.map(lambda value: json.dumps(value)),
    st.text(max_size=60),
)
contents = st.one_of(
    st.binary(max_size=200),
    st.lists(rows, max_size=4).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")),
    st.lists(rows, max_size=3).map(lambda lines: b"\xef\xbb\xbf" + "\r\n".join(lines).encode("utf-16")),
)
file_names = (
    st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40)
    .filter(lambda name: name not in (".", ".."))
    .map(lambda name: f"{name}.jsonl")
)


@dataclass
class Doors:
    """What a client and a worker do, in one process."""

    work: Path
    context: Context
    patch: pytest.MonkeyPatch
    rung: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Requests go to their task by a direct call; other messages are lost, as the sweep allows."""
        app.loader.import_default_modules()
        self.patch.setattr(tasks.api, "ask", self.ask)
        self.patch.setattr(Context, "send", self._lose)
        self.patch.setattr(Context, "deliver", self._lose)
        self.patch.setattr(app.control, "ping", lambda **_: [{"train@here": {}}])

    def call(self, name: str, kwargs: Mapping[str, Any]) -> object:
        """A task as `celery call` reaches it: JSON there, JSON back. Expected errors are `TandemError`."""
        sent = json.loads(json.dumps(dict(kwargs)))
        if name in ONLY_PARSED:
            return parse_request(name, fields=sent)
        done = app.tasks[name].apply(kwargs=sent, throw=True)
        return json.loads(json.dumps(done.result, allow_nan=False))

    def ask(self, _context: Context, task: str, *, request: Record, answer: type[R]) -> R:
        """In place of the client's round trip by Redis."""
        return answer.model_validate(self.call(task, request.model_dump(mode="json")))

    def run(self, arguments: list[str]) -> tuple[int, str]:
        """`tandem ...` in this process: its exit code and all that it printed."""
        output = io.StringIO()
        self.patch.setattr(sys, "argv", ["tandem", *arguments])
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                main()
            except SystemExit as ended:
                return int(ended.code or 0), output.getvalue()
        return 0, output.getvalue()

    def drop(self, folder: str, name: str, content: bytes) -> None:
        """A file in the inbox, and a scan of it."""
        directory = self.context.settings.paths.inbox / folder
        directory.mkdir(exist_ok=True)
        path = directory / name
        path.write_bytes(content)
        os.utime(path, (0, 0))
        scan(Nothing(), self.context)

    def _lose(self, *_: object, **__: object) -> str:
        raise BrokerUnavailable("There is no Redis here.")

    def check(self) -> None:
        """No half-made job, no file that nobody owns, nothing written elsewhere."""
        with self.context.registry.reading() as tx:
            jobs, datasets = tx.find(TrainingJob), {found.id: found for found in tx.find(Dataset)}
        for job in jobs:
            dataset = datasets[job.dataset_id]
            assert job.state in set(JobState) - {JobState.SUBMITTED, JobState.RUNNING}
            assert sha256_file(Path(dataset.path)) == dataset.content_sha256 == Path(dataset.path).stem
        paths = self.context.settings.paths
        assert [path.name for path in paths.datasets.iterdir() if path.suffix != ".jsonl"] == []
        assert {path.name for path in self.work.iterdir()} == {"folder", "good.jsonl", "pipe.jsonl", "var"}


def is_told_well(error: BaseException) -> bool:
    """An expected error: one of ours, with a message a person can read."""
    return isinstance(error, TandemError) and bool(error.message) and "Traceback" not in str(error)


@contextlib.contextmanager
def nothing_but_our_errors() -> Any:
    """Whatever else is raised is a finding."""
    try:
        yield
    except TandemError as error:
        if not is_told_well(error):
            raise AssertionError(repr(error)) from error
