"""Door 3: the command line. Exit 0, 1 or 2, one sentence, and never a traceback."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import leases
from registry.records import Lease, TrainingJob
from registry.states import JobState
from tasks.api import JobHandle
from tasks.cli.main import cli, main
from tests.fuzz.requests import HYPERPARAMETERS, junk, odd_text, values_of, words

pytestmark = [pytest.mark.integration, pytest.mark.fuzz, pytest.mark.timeout(3000)]
# Whatever stands below these is fuzzed. `up`, `down` and `demo` start and stop processes.
GROUPS = (
    "submit",
    "job",
    "queue",
    "deploy",
    "checkpoint",
    "suite",
    "data",
    "drain",
    "undrain",
    "events",
    "config",
)
WRITES_WHERE_ASKED = ("data", "convert")
ENDLESS = ("watch", "follow")


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not hasattr(command, "commands"):
        return {path: command}
    found: dict[tuple[str, ...], Any] = {}
    for name, inner in command.commands.items():
        if (path or name in GROUPS) and name not in ENDLESS:
            found |= leaves(inner, (*path, name))
    return found


def value_for(parameter: Any) -> st.SearchStrategy[str]:
    """Mostly what the parameter's type asks for. An argument ends at a zero byte, so none can hold one."""
    name = parameter.name or ""
    if name == "set_":
        value = odd_text | junk.map(json.dumps)
        likely = st.tuples(st.sampled_from(HYPERPARAMETERS), value).map("=".join)
    else:
        kind = parameter.type_descriptor.annotation
        likely = words(name) if kind is Path else values_of(kind, name=name).map(as_word)
    return st.one_of([likely] * 5 + [odd_text]).map(lambda text: text.replace("\0", ""))


def as_word(value: Any) -> str:
    return str(value[0] if isinstance(value, list) and value else value)


def part_of(parameter: Any) -> st.SearchStrategy[list[str]]:
    if parameter.opts[0].startswith("-"):
        name = parameter.opts[0]
        given_ = st.just([name]) if parameter.is_flag else value_for(parameter).map(lambda v: [name, v])
        return st.just([]) | given_
    present = value_for(parameter).map(lambda value: [value])
    return st.one_of([present] * 8 + [st.just([])])


def argv_of(item: tuple[tuple[str, ...], Any]) -> st.SearchStrategy[list[str]]:
    path, command = item
    parts = [part_of(parameter) for parameter in command.params if parameter.name not in ("help", *ENDLESS)]
    extra = st.one_of([st.just([])] * 8 + [odd_text.map(lambda text: [text.replace("\0", "")])])
    body = st.tuples(*parts, extra).map(lambda lists: [word for words_ in lists for word in words_])
    return body.map(lambda rest: [*path, *rest])


COMMANDS = leaves(typer.main.get_command(cli))
lines = st.sampled_from(sorted(COMMANDS.items(), key=lambda item: item[0])).flatmap(argv_of)


def run(argv: list[str]) -> tuple[object, str]:
    """The program as the shell would run it: its streams are strict about what UTF-8 can say."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    sys.argv = ["tandem", *argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
    out.flush()
    err.flush()
    return code, (out.buffer.getvalue() + err.buffer.getvalue()).decode()  # type: ignore[attr-defined]


@settings(settings.get_profile("fuzz"))
@given(lines)
def test_every_line_ends_in_0_1_or_2_without_a_traceback(
    door: Any, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    with door() as case:

        def end_the_job(_seconds: float) -> None:
            with case.context.registry.transaction() as tx:
                for state in (JobState.QUEUED, JobState.SUBMITTED, JobState.RUNNING, JobState.PAUSED):
                    for job in tx.find(TrainingJob, state=state):
                        tx.transition(job, to=JobState.CANCELLED, actor="test")
                for lease in tx.find(Lease):
                    leases.release(tx, lease)

        monkeypatch.setitem(JobHandle.wait.__kwdefaults__, "sleep", end_the_job)
        monkeypatch.setattr(sys, "argv", [])
        if tuple(argv[:2]) == WRITES_WHERE_ASKED:
            case.watch.named = [Path(os.path.abspath(word)) for word in argv[2:]]  # noqa: PTH100 - any text
        code, output = run(argv)
        assert code in (0, 1, 2), (code, output)
        assert "Traceback" not in output
        assert code == 0 or output.strip(), f"{argv} failed without a word"
