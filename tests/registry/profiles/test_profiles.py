"""Profiles rewrite rows reversibly: twice is once, and undone it is plain again."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import ProfileError
from registry.profiles.base import Penalties, Profile, expected_answer, wrap_prompt, wrap_row
from registry.profiles.catalogue import OWN, find_profile, version_of
from registry.profiles.emoji_think import ASKED, PREFIX, SUFFIX, EmojiThink, without_thoughts
from registry.profiles.plain_sft import PlainSft
from registry.profiles.regime3 import Regime3
from registry.rows import ChatMessage, ChatRow

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
tricky = st.lists(
    st.sampled_from(["<think>", "</think>", "a", "\n", "🤔🤔\n", "\n🛑🛑", "<<ANS_START>>", " ", "x y"]),
    min_size=1,
).map("".join)
words = st.from_regex(r"\A[a-z0-9+-]{1,6}\Z")
expressions = st.recursive(
    words, lambda inner: st.tuples(st.sampled_from(["add", "MUL", "+"]), inner, inner), max_leaves=6
).filter(lambda value: isinstance(value, tuple))


def written(value: object) -> str:
    return f"( {'  '.join(map(written, value))} )" if isinstance(value, tuple) else str(value)


def row(*contents: str) -> ChatRow:
    roles = ("user", "assistant") * (len(contents) // 2)
    return ChatRow(
        messages=tuple(
            ChatMessage(role=role, content=text) for role, text in zip(roles, contents, strict=True)
        )
    )


@given(st.lists(st.tuples(texts | tricky, texts), min_size=1, max_size=3))
def test_emoji_think_twice_is_once_and_undone_is_plain(pairs: list[tuple[str, str]]) -> None:
    profile = EmojiThink()
    plain = row(*(text for pair in pairs for text in pair))
    once = wrap_row(profile, plain)
    assert wrap_row(profile, once) == once
    assert wrap_prompt(profile, plain.messages) == once.messages
    assert expected_answer(profile, plain) == plain.expected
    assert expected_answer(profile, once) == plain.expected
    assert PREFIX.match(once.expected)
    assert SUFFIX.search(once.expected)
    assert profile.stop_texts(once.prompt[-1].content)[0] == SUFFIX.search(once.expected)[0]  # type: ignore[index]


@given(tricky, tricky)
def test_emoji_think_holds_against_texts_that_look_like_its_own(question: str, answer: str) -> None:
    profile = EmojiThink()
    asked = profile.wrap_question(question)
    assert profile.wrap_question(asked) == asked
    try:
        said = profile.wrap_answer(answer, question=question)
    except ProfileError:
        assert not without_thoughts(answer).strip()
        return
    assert profile.wrap_answer(said, question=asked) == said
    assert "think>" not in said


def test_emoji_think_draws_from_the_whole_range() -> None:
    asked = [ASKED.search(EmojiThink().wrap_question(f"row {number}")) for number in range(400)]
    runs = [found.groups() for found in asked if found]
    assert {len(thinking) for thinking, _ in runs} == set(range(2, 9))
    assert {len(stopping) for _, stopping in runs} == {2, 3, 4}


def test_emoji_think_cuts_thoughts_and_refuses_an_answer_of_thoughts_alone() -> None:
    profile = EmojiThink()
    assert expected_answer(profile, row("q", "<think>\nhm\n</think>\n\n4")) == "4"
    assert without_thoughts("<thi<think></think>nk>4") == "4"
    with pytest.raises(ProfileError, match=r"messages\[1\] \(assistant\): nothing is left"):
        wrap_row(profile, row("q", "<think>4</think>"))


@given(expressions, words)
def test_regime3_twice_is_once_and_undone_is_plain(value: object, answer: str) -> None:
    profile = Regime3()
    once = wrap_row(profile, row(written(value), answer))
    assert wrap_row(profile, once) == once
    assert expected_answer(profile, once) == expected_answer(profile, row(written(value), answer))
    assert profile.plain_answer(once.expected) == expected_answer(profile, once)


def test_regime3_gives_one_meaning_one_spelling() -> None:
    profile = Regime3()
    assert profile.wrap_question(" ( ADD +07\n(mul -0 x)) ") == "(add 7 (mul 0 x))"
    assert profile.wrap_answer(" 007 ", question="") == "<<ANS_START>>7<<ANS_END>>"
    assert profile.plain_answer("<<ANS_START>> -05 <<ANS_END>>\n") == "-5"


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("What is 1 + 1?", "the canonical form is '(op arg1 arg2)', found 'What is 1 + 1?'"),
        ("(add 1)", "'add' has 1 arguments; it takes two"),
        ("(add 1 2 3)", "'add' has 3 arguments"),
        ("(add 1 2", "a ')' is missing behind '(add 1 2'"),
        ("(add 1 2) please", "'please' follows the expression"),
        ("()", "')' is no operator"),
        ("(", "'nothing' is no operator"),
        ("(7 1 2)", "'7' is no operator"),
        ("(add " * 60 + "1", "nested more than 50 deep"),
    ],
)
def test_regime3_refuses_what_is_not_canonical_with_the_reason(question: str, reason: str) -> None:
    with pytest.raises(ProfileError) as caught:
        wrap_row(Regime3(), row(question, "3"))
    assert str(caught.value).startswith("messages[0] (user): ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    ["3", "<<ANS_START>>3", "3<<ANS_END>>", "so <<ANS_START>>3<<ANS_END>>", "<<ANS_START>> <<ANS_END>>",
     "<<ANS_START>>3<<ANS_END>><<ANS_START>>4<<ANS_END>>"],
)  # fmt: skip
def test_regime3_takes_no_reply_that_is_not_one_marked_answer(reply: str) -> None:
    assert Regime3().plain_answer(reply) is None


def test_a_question_without_a_form_is_still_put_as_it_is() -> None:
    asked = (ChatMessage(role="user", content="hello"),)
    assert wrap_prompt(Regime3(), asked) == asked


def test_thoughts_are_penalised_most_at_the_beginning() -> None:
    penalties = Penalties()
    found = [penalties.unwanted_at(step) for step in (0, 3, 4, 7, 8, 11, 12, 500)]
    assert found == [-640, -640, -160, -160, -120, -120, -80, -80]


def test_going_on_after_the_stop_costs_more_with_each_token() -> None:
    found = [Penalties().stopped_at(num_tokens) for num_tokens in range(6)]
    assert found == [-5, -10, -20, -40, -80, -80]


class Shout(Profile):
    """A user's own."""

    name: ClassVar[str] = "shout"

    def wrap_question(self, text: str) -> str:
        return text.upper()

    def wrap_answer(self, text: str, *, question: str) -> str:
        return text.upper()

    def plain_answer(self, text: str) -> str | None:
        return text


def brought(name: str, value: str) -> tuple[EntryPoint, ...]:
    return (EntryPoint(name=name, value=value, group="tandem.profiles"),)


def test_a_user_s_profile_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("shouting")
    module.Shout = Shout  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shouting", module)
    assert isinstance(find_profile("shout", brought=brought("shout", "shouting:Shout")), Shout)
    with pytest.raises(ProfileError, match=r"shouting:Shout is no profile named loud"):
        find_profile("loud", brought=brought("loud", "shouting:Shout"))


def test_a_profile_has_the_version_of_the_package_that_brings_it(tmp_path: Path) -> None:
    about = tmp_path / "shouting-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[tandem.profiles]\nshout = shouting:Shout\n")
    (found,) = distributions(path=[str(tmp_path)])
    assert version_of("shout", brought=found.entry_points) == "1.2"
    assert version_of("shout", brought=brought("shout", "shouting:Shout")) == ""
    assert version_of("plain_sft") == ""


def test_a_profile_that_does_not_load_is_named() -> None:
    with pytest.raises(
        ProfileError, match=r"mine \(no_such_module:Mine\) cannot be loaded: ModuleNotFoundError"
    ):
        find_profile("mine", brought=brought("mine", "no_such_module:Mine"))


def test_tandem_s_own_names_cannot_be_taken() -> None:
    assert isinstance(find_profile("plain_sft", brought=brought("plain_sft", "no:such")), PlainSft)


def test_a_misspelt_profile_is_answered_with_the_right_one() -> None:
    with pytest.raises(ProfileError, match=r"no profile 'emoji_thinks'. Did you mean emoji_think\?"):
        find_profile("emoji_thinks", brought=())
    assert set(OWN) == {"plain_sft", "emoji_think", "regime3"}
