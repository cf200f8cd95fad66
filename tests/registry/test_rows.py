import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import DatasetError
from registry.rows import MAX_LINE_BYTES, ChatRow, parse_row, read_rows

QUESTION = {"role": "user", "content": "cat?"}
ANSWER = {"role": "assistant", "content": "tac"}


def line(**fields: object) -> str:
    return json.dumps({"messages": [QUESTION, ANSWER], **fields})


def parsed(text: str) -> ChatRow:
    return parse_row(text, source="f.jsonl, line 3")


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    return path


def test_a_chat_row_is_its_prompt_and_its_expected_answer() -> None:
    row = parsed(line(difficulty="easy", tags=["short"]))
    assert [(turn.role, turn.content) for turn in row.prompt] == [("user", "cat?")]
    assert row.expected == "tac"
    assert (row.difficulty, row.tags) == ("easy", ("short",))


def test_a_prompt_and_a_completion_are_the_same_row_as_the_chat() -> None:
    row = parsed(json.dumps({"prompt": "cat?", "completion": "tac"}))
    assert row == parsed(line())


def test_what_a_chat_log_carries_beside_is_left_out() -> None:
    text = json.dumps({"messages": [QUESTION | {"name": "ann"}, ANSWER | {"weight": 1}], "model": "m"})
    assert parsed(text) == parsed(line())


def test_a_system_message_may_come_first_and_turns_may_repeat() -> None:
    turns = [{"role": "system", "content": "be brief"}, QUESTION, ANSWER, QUESTION, ANSWER]
    assert len(parsed(json.dumps({"messages": turns})).prompt) == 4


def test_a_row_without_an_id_is_named_by_its_messages_alone() -> None:
    assert parsed(line(id="mine")).content_id == "mine"
    assert parsed(line()).content_id == parsed(line(difficulty="hard", tags=["x"])).content_id
    other = json.dumps({"prompt": "cat??", "completion": "tac"})
    assert parsed(line()).content_id != parsed(other).content_id


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
        ("[1]", "not a list"),
        ("null", "not null"),
        ("true", "not a boolean"),
        ("3.5", "not a number"),
        ('"text"', "not a string"),
        ("{}", "its fields are none"),
        ('{"prompt": "a", "text": "b"}', "its fields are prompt, text"),
        ('{"prompt": "a", "completion": 5}', "messages[1].content"),
        ('{"messages": []}', "messages: "),
        ('{"messages": {"role": "user"}}', "messages: "),
        ('{"messages": ["hi", "ho"]}', "messages[0]"),
        (json.dumps({"messages": [ANSWER]}), "messages: "),
        (json.dumps({"messages": [QUESTION, QUESTION]}), "the last message is the user's"),
        (json.dumps({"messages": [ANSWER, ANSWER]}), "no message is the user's"),
        (json.dumps({"messages": [{"role": "tool", "content": "x"}, ANSWER]}), "messages[0].role"),
        (
            json.dumps({"messages": [{"role": "user", "content": " \n"}, ANSWER]}),
            "messages[0] (user) is empty",
        ),
        (json.dumps({"messages": [QUESTION, ANSWER | {"content": ""}]}), "messages[1] (assistant) is empty"),
        (
            json.dumps({"messages": [QUESTION, {"role": "system", "content": "x"}, ANSWER]}),
            "messages[1] is a system message",
        ),
        (line(id=5), "id: "),
        (line(tags="short"), "tags: "),
        (line(id="\ud800"), "surrogate"),
        (json.dumps({"prompt": "\udfff", "completion": "x"}), "surrogate"),
        ('{"\\ud83d": 1}', "surrogate"),
    ],
)
def test_an_unusable_row_is_refused_with_its_place_and_reason(text: str, reason: str) -> None:
    with pytest.raises(DatasetError) as caught:
        parsed(text)
    assert str(caught.value).startswith("f.jsonl, line 3: ")
    assert reason in str(caught.value)


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert parsed('{"prompt": "\\ud83d\\ude00", "completion": "\\\\ud800"}').expected == "\\ud800"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(texts, texts)
def test_any_text_survives_writing_and_reading(prompt: str, completion: str) -> None:
    for is_ascii in (True, False):
        text = json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=is_ascii)
        row = parsed(text)
        assert (row.prompt[0].content, row.expected) == (prompt, completion)
        assert len(row.content_id) == 16


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_whatever_json_holds_is_a_row_or_an_explained_error(value: object) -> None:
    for fields in (value, {"messages": value}, {"prompt": value, "completion": value}):
        with suppress(DatasetError):
            assert parsed(json.dumps(fields)).expected.strip()


def test_a_file_is_read_in_order_past_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    body = "\n".join(["", line(id="a"), "  ", line(id="b"), ""])
    path = written(tmp_path, b"\xef\xbb\xbf" + body.replace("\n", "\r\n").encode())
    assert [row.id for row in read_rows(path)] == ["a", "b"]


def test_a_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    text = json.dumps({"prompt": "a\u2028b\x85c", "completion": "x"}, ensure_ascii=False)
    (row,) = read_rows(written(tmp_path, text.encode()))
    assert row.prompt[0].content == "a\u2028b\x85c"


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, f"{line()}\n\n{{}}\n".encode())
    with pytest.raises(DatasetError, match=r"^f\.jsonl, line 3: is in no known form"):
        list(read_rows(path))


def test_a_row_without_an_answer_is_told_what_it_lacks() -> None:
    with pytest.raises(DatasetError, match="messages: 1 turns; there must be a question and its answer"):
        parsed(json.dumps({"messages": [{"role": "user", "content": "How many?"}]}))


def test_bytes_that_are_not_utf8_are_named_by_line_and_byte(tmp_path: Path) -> None:
    path = written(tmp_path, line().encode() + b"\nab\xff\n")
    with pytest.raises(DatasetError, match=r"line 2: not UTF-8 \(byte 3\)"):
        list(read_rows(path))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DatasetError, match="has no rows"):
        list(read_rows(written(tmp_path, content)))


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_path_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_line_of_the_longest_length_is_read_and_one_byte_more_is_not(tmp_path: Path, ending: bytes) -> None:
    frame = len(json.dumps({"prompt": "", "completion": "x"}))
    text = json.dumps({"prompt": "a" * (MAX_LINE_BYTES - frame), "completion": "x"}).encode()
    assert len(text) == MAX_LINE_BYTES
    assert len(list(read_rows(written(tmp_path, text + ending)))) == 1
    with pytest.raises(DatasetError, match="line 1: longer than"):
        list(read_rows(written(tmp_path, text + b" " + ending)))
