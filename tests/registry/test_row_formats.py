"""Every accepted form of a row becomes the same conversation; what is in none or in two is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import DatasetError
from registry.row_formats import REQUIRED, RowFormat, recognise
from registry.rows import parse_row

ASKED = {"role": "user", "content": "x"}
SAID = {"role": "assistant", "content": "y"}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
conversations = st.tuples(st.none() | texts, st.lists(st.tuples(texts, texts), min_size=1, max_size=4))


def parsed(value: dict[str, Any]) -> list[tuple[str, str]]:
    row = parse_row(json.dumps(value), source="f.jsonl, line 3")
    return [(message.role, message.content) for message in row.messages]


def turns(system: str | None, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    first = [] if system is None else [("system", system)]
    return [*first, *(turn for ask, say in pairs for turn in (("user", ask), ("assistant", say)))]


@given(conversations)
def test_all_forms_of_a_conversation_are_one_row(
    conversation: tuple[str | None, list[tuple[str, str]]],
) -> None:
    system, pairs = conversation
    expected = turns(system, pairs)
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    messages = [{"role": role, "content": text} for role, text in expected]
    spoken = [{"from": speakers[role], "value": text} for role, text in expected]
    assert parsed({"messages": messages}) == expected
    assert parsed({"prompt": messages[:-1], "completion": messages[-1:]}) == expected
    assert parsed({"conversations": spoken}) == expected
    (*history, (instruction, output)) = pairs
    alpaca = {"instruction": instruction, "input": "", "output": output, "system": system or ""}
    assert parsed({**alpaca, "history": [list(pair) for pair in history]}) == expected


def test_what_asks_for_nothing_more_than_the_words_is_read() -> None:
    nothing: dict[str, Any] = {"tool_calls": [], "function_call": None}
    messages = [{**ASKED, "weight": 0, "name": "ann"}, {**SAID, **nothing, "weight": 1}]
    expected = [("user", "x"), ("assistant", "y")]
    for empty in (None, [], "", "[]"):
        assert parsed({"messages": messages, "tools": empty, "functions": empty}) == expected
    assert parsed({"messages": [ASKED, {**SAID, "weight": None}]}) == expected
    assert parsed({"messages": [ASKED, {**SAID, "weight": 1.0}]}) == expected


def test_an_input_follows_its_instruction() -> None:
    row = parsed({"instruction": "Spell backward.", "input": "cat", "output": "tac"})
    assert row == [("user", "Spell backward.\ncat"), ("assistant", "tac")]


@pytest.mark.parametrize("first", RowFormat)
@pytest.mark.parametrize("second", RowFormat)
def test_a_row_that_is_whole_in_two_forms_is_refused(first: RowFormat, second: RowFormat) -> None:
    value = dict.fromkeys((*REQUIRED[first], *REQUIRED[second]), "x")
    if first == second:
        assert recognise(value, source="line 3") == first
        return
    with pytest.raises(DatasetError, match=r"^line 3: is ambiguous: .*accepted are 'messages'"):
        recognise(value, source="line 3")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": "a", "text": "b"}, "its fields are prompt, text"),
        ({"instruction": "a"}, "Accepted are 'messages'; 'prompt' and 'completion'"),
        ({"instruction": "a", "output": "b", "input": 5}, "input: it is a text (found '5')"),
        ({"instruction": "a", "output": None}, "messages[1].content"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "history: it is a list of"),
        ({"conversations": "hi"}, "conversations: it is a list of turns"),
        ({"conversations": [{"from": "human"}]}, "conversations[0]: a turn has 'from' and 'value'"),
        (
            {"conversations": [{"from": "robot", "value": "x"}]},
            "'robot' is no known speaker. Known are system",
        ),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "is no known speaker"),
        ({"conversations": [{"from": "human", "value": "x"}], "tools": "[{}]"}, "'tools' are not trained on"),
        ({"prompt": [], "completion": "x"}, "one is a list and the other is not"),
        (
            {"messages": [ASKED, {**SAID, "weight": 0}]},
            "messages[1]: 'weight' is 0, but every assistant's turn is learnt alike",
        ),
        ({"messages": [ASKED, {**SAID, "weight": 0.5}]}, "'weight' is 0.5"),
        ({"messages": [ASKED, {**SAID, "weight": "1"}]}, "'weight' is 1, but"),
        ({"prompt": [ASKED], "completion": [{**SAID, "weight": 0}]}, "completion[0]: 'weight' is 0"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "weight": 0}]},
            "conversations[1]: 'weight' is 0",
        ),
        ({"messages": [ASKED, SAID], "tools": [{"type": "function"}]}, "line 3: 'tools' are not trained on"),
        ({"messages": [ASKED, SAID], "functions": [{"name": "f"}]}, "'functions' are not trained on"),
        ({"prompt": [ASKED], "completion": [SAID], "tools": [{}]}, "'tools' are not trained on"),
        (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages[1]: 'tool_calls' are not trained on; without them the row would say something else",
        ),
        (
            {"messages": [ASKED, {**SAID, "function_call": {"name": "f"}}]},
            "messages[1]: 'function_call' are not trained on",
        ),
    ],
)
def test_a_malformed_row_is_refused_with_what_was_found(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(DatasetError) as caught:
        parsed(value)
    assert str(caught.value).startswith("f.jsonl, line 3: ")
    assert reason in str(caught.value)
