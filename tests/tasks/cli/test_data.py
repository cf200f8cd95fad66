"""`tandem data`: thirty datasets that cannot be used, each answered with what, where and how to mend it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from tasks.cli.main import main

ASK: dict[str, Any] = {"role": "user", "content": "cat?"}
SAY: dict[str, Any] = {"role": "assistant", "content": "tac"}


def chat(*turns: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(turns), **fields}


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["tandem", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


BAD: list[tuple[Any, list[str]]] = [
    (b"", ["has no rows", "Put one JSON object on each line"]),
    (b" \n\n", ["has no rows"]),
    (b"{", ["line 1: not valid JSON"]),
    (b'{"prompt": "a", "completion": "b"},\n', ["line 1: not valid JSON"]),
    (b"\xff\xfe{\x00}\x00", ["line 1: not UTF-8 (byte 1)", "iconv"]),
    (b"PK\x03\x04\x14\x80", ["line 1: not UTF-8"]),
    (["a"], ["line 1: a row is a JSON object, not a string"]),
    ([[ASK, SAY]], ["a row is a JSON object, not a list"]),
    ([None], ["not null"]),
    ([{}], ["in no known form; its fields are none", "Accepted are 'messages'"]),
    ([{"text": "abc"}], ["its fields are text", "'prompt' and 'completion'"]),
    ([{"question": "a", "answer": "b"}], ["its fields are answer, question", "(Alpaca"]),
    (
        [{"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}],
        ["ambiguous", "completion and of alpaca"],
    ),
    ([{**chat(ASK, SAY), "conversations": []}], ["ambiguous", "messages and of sharegpt"]),
    ([{"prompt": "a", "completion": 5}], ["messages[1].content", "found '5'"]),
    ([{"prompt": "", "completion": "b"}], ["messages[0] (user) is empty"]),
    ([{"instruction": "a", "output": " "}], ["messages[1] (assistant) is empty"]),
    ([{"instruction": "a", "input": 7, "output": "b"}], ["input: it is a text (found '7')"]),
    ([{"instruction": "a", "output": "b", "history": [["x"]]}], ["history: it is a list of"]),
    ([{"conversations": [{"from": "human", "value": "a"}]}], ["messages: "]),
    ([{"conversations": [{"role": "user", "content": "a"}]}], ["a turn has 'from' and 'value'"]),
    ([{"conversations": [{"from": "bot", "value": "a"}]}], ["'bot' is no known speaker", "Known are"]),
    ([{"conversations": [], "tools": "[1]"}], ["'tools' are not trained on", "Remove the rows"]),
    ([chat(ASK)], ["messages: "]),
    ([chat(ASK, ASK)], ["the last message is the user's; it must be the assistant's"]),
    ([chat(SAY, SAY)], ["no message is the user's"]),
    ([chat({"role": "tool", "content": "x"}, SAY)], ["messages[0].role", "found 'tool'"]),
    ([chat(ASK, {"role": "system", "content": "x"}, SAY)], ["messages[1] is a system message"]),
    ([chat(ASK, SAY), chat(ASK, {"role": "assistant"})], ["line 2: messages[1].content"]),
    ([chat(ASK, SAY, tags="x")], ["tags: ", "found 'x'"]),
    ([chat(ASK, SAY, id=5)], ["id: ", "found '5'"]),
    ([{"prompt": "\ud800", "completion": "b"}], ["half of a surrogate pair"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), BAD, ids=range(len(BAD)))
def test_a_malformed_dataset_is_refused_with_place_and_reason(
    content: Any,
    said: list[str],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "rows.jsonl"
    raw = (
        content if isinstance(content, bytes) else "".join(json.dumps(row) + "\n" for row in content).encode()
    )
    path.write_bytes(raw)
    assert run("data", "validate", str(path), monkeypatch=monkeypatch) == 1
    words = " ".join(capsys.readouterr().err.split())
    assert words.startswith("tandem: ")
    assert "Traceback" not in words
    assert "rows.jsonl" in words
    assert [part for part in said if part not in words] == [], words


def test_a_profile_names_the_row_that_it_has_no_form_for(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "(add 1 2)", "completion": "3"}, {"prompt": "(add 1)", "completion": "1"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("data", "validate", str(path), "--profile", "regime3", monkeypatch=monkeypatch) == 1
    assert "row 2 is not for profile regime3: messages[0] (user): 'add' has 1" in capsys.readouterr().err
    assert run("data", "validate", str(path), "--profile", "regime4", monkeypatch=monkeypatch) == 1
    assert "Did you mean regime3?" in capsys.readouterr().err


def test_any_form_is_converted_to_messages_and_bad_rows_are_left_out_if_asked(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = tmp_path / "rows.json", tmp_path / "out.jsonl"
    rows = [
        {"instruction": "a", "input": "b", "output": "c"},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], "id": "7"},
        {"text": "no"},
    ]
    path.write_text(json.dumps(rows))
    words = ("data", "convert", str(path), str(target))
    assert run(*words, monkeypatch=monkeypatch) == 1
    assert "rows.json, entry 3: is in no known form" in capsys.readouterr().err
    assert not target.exists()
    assert run(*words, "--drop-bad", "--json", monkeypatch=monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_rows"], report["num_left_out"]) == (2, 1)
    assert report["num_by_format"] == {"alpaca": 1, "sharegpt": 1}
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in written] == ["a\nb", "x"]
    assert written[1]["id"] == "7"
    assert run(*words, monkeypatch=monkeypatch) == 1
    assert "exists already" in capsys.readouterr().err
