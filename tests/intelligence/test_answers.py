import pytest

from intelligence.answers import canonical_form, last_number, same_form, same_json, same_number, same_set
from intelligence.errors import UnreadableAnswer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("It is 1,234,567.5.", 1234567.5),
        ("first 3, then 7", 7),
        ("#### 12\nchecked 3 times", 12),
        (r"so \boxed{-3.5} of 9", -3.5),
        ("The answer is 8 (not 9)", 9),
        ("<<ANS_START>> 5 <<ANS_END>> and 6", 5),
        ("3-4", 4),
        ("−2", -2),
        (".5", 0.5),
        ("1e3", 1000),
        ("1234,567", 567),
        ("x5", None),
        ("", None),
        ("none", None),
        ("1e999", None),
        ("nan", None),
    ],
)
def test_the_marked_or_last_number_is_read(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_numbers_agree_within_the_rows_tolerance() -> None:
    assert same_number("1,000", expected="1000", options={})
    assert not same_number("1001", expected="1000", options={})
    assert same_number("1001", expected="1000", options={"relative": 0.01})
    assert same_number("0.01", expected="0", options={"absolute": 0.1})
    assert not same_number("no idea", expected="0", options={"absolute": 0.1})


def test_json_is_compared_by_value_and_kind() -> None:
    assert same_json('```json\n{"b": [1, 2.0], "a": null}\n```', expected='{"a":null,"b":[1,2]}', options={})
    assert not same_json("[2, 1]", expected="[1, 2]", options={})
    assert same_json("[2, 1]", expected="[1, 2]", options={"ignore_order": True})
    for reply in ("true", "[true]", '{"a": 1, "a": 1}', "NaN", "1e999", "[1", "[" * 100_000):
        assert not same_json(reply, expected="[1]", options={})
        assert not same_json(reply, expected='{"a": 1}', options={})


def test_a_set_knows_no_order() -> None:
    assert same_set("{b, 'a', b}", expected="a, b", options={})
    assert same_set("- a\n- b", expected="b,a", options={})
    assert same_set("a,b | c", expected="c|a,b", options={"separator": "|"})
    assert not same_set("a", expected="a, b", options={})
    assert not same_set("", expected="a", options={})


def test_a_form_is_the_same_whatever_its_white_space() -> None:
    assert same_form("(add  1\n(neg 2) )", expected="(add 1 (neg 2))", options={})
    assert not same_form("(add 2 1)", expected="(add 1 2)", options={})
    marked = "<<ANS_START>>(add 1 2)<<ANS_END>>"
    assert same_form(f"I think (sub 1 2). {marked}", expected=marked, options={})
    assert not same_form("(add 1 2)", expected=marked, options={})
    assert not same_form("<<ANS_START>>(add 1 2)", expected="(add 1 2)", options={})


@pytest.mark.parametrize("text", ["", "a", "()", "(a", "(a))", "(a) b", ")", "(" * 500 + "a" + ")" * 500])
def test_what_is_no_form_is_none(text: str) -> None:
    assert canonical_form(text) is None


def test_an_expected_answer_that_cannot_be_read_is_the_rows_fault() -> None:
    for same in (same_number, same_json, same_set, same_form):
        with pytest.raises(UnreadableAnswer, match="The expected answer ' ,'"):
            same("1", expected=" ,", options={})
