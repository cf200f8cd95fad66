"""Conversations as tokens: every assistant turn is learnt once, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.profiles.catalogue import find_profile
from registry.rows import ChatMessage, ChatRow
from trainer.core.chat import ChatEncoder, Example
from trainer.errors import DataError, ModelError

# As Qwen3's: thoughts of earlier turns are dropped, the last turn shows an empty thought where it has none.
THINKING_TEMPLATE = (
    "{%- set last = namespace(user=-1) %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}"
    "{%- endfor %}"
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role != 'assistant' %}{{- m.content }}"
    "{%- elif loop.index0 < last.user %}{{- m.content.split('</think>')[-1].lstrip('\\n') }}"
    "{%- elif '</think>' in m.content %}{{- m.content }}"
    "{%- else %}{{- '<think>\\n\\n</think>\\n\\n' + m.content }}"
    "{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)

words = st.text(alphabet="abc xyz.\n", min_size=1, max_size=12).filter(str.strip)


def row(*contents: str, system: str = "") -> ChatRow:
    roles = ["user", "assistant"] * ((len(contents) + 1) // 2)
    turns = [ChatMessage(role=role, content=text) for role, text in zip(roles, contents, strict=False)]
    first = [ChatMessage(role="system", content=system)] if system else []
    return ChatRow(messages=(*first, *turns))


def encode(tokenizer: Any, chat: ChatRow) -> list[Example]:
    return next(iter(ChatEncoder(tokenizer).encode([chat])))


def learnt(tokenizer: Any, example: Example) -> list[str]:
    """The stretches that are learnt, as text."""
    stretches: list[list[int]] = []
    before = False
    for token, is_answer in zip(example.tokens, example.is_answer, strict=True):
        if is_answer and not before:
            stretches.append([])
        if is_answer:
            stretches[-1].append(token)
        before = is_answer
    return [tokenizer.decode(stretch) for stretch in stretches]


def test_the_answer_and_its_end_of_turn_are_learnt_and_nothing_else(tokenizer: Any) -> None:
    (example,) = encode(tokenizer, row("turn abc", "cba"))
    assert learnt(tokenizer, example) == ["cba<|im_end|>"]
    assert tokenizer.decode(example.tokens).startswith("<|im_start|>user\nturn abc<|im_end|>")


def test_a_sequence_ends_with_what_is_learnt(tokenizer: Any) -> None:
    (example,) = encode(tokenizer, row("turn abc", "cba"))
    assert example.is_answer[-1]


@given(contents=st.lists(words, min_size=1, max_size=4), system=st.sampled_from(["", "Be brief."]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_assistant_turn_is_learnt_once(tokenizer: Any, contents: list[str], system: str) -> None:
    turns = [text for word in contents for text in ("ask " + word, word)]
    examples = encode(tokenizer, row(*turns, system=system))
    assert len(examples) == 1
    assert learnt(tokenizer, examples[0]) == [word + "<|im_end|>" for word in contents]


@given(contents=st.lists(words, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_template_that_rewrites_earlier_turns_teaches_each_from_its_own_prompt(
    tokenizer: Any, contents: list[str]
) -> None:
    tokenizer.chat_template = THINKING_TEMPLATE
    turns = [text for word in contents for text in ("ask " + word, word)]
    examples = encode(tokenizer, row(*turns))
    spoken = [text for example in examples for text in learnt(tokenizer, example)]
    assert spoken == [word + "<|im_end|>" for word in contents]


@given(
    roles=st.lists(st.sampled_from(["user", "assistant"]), max_size=6),
    text=words,
    system=st.booleans(),
    is_thinking=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_any_mixture_of_turns_each_answer_token_is_learnt_exactly_once(
    tokenizer: Any, roles: list[str], text: str, *, system: bool, is_thinking: bool
) -> None:
    if is_thinking:
        tokenizer.chat_template = THINKING_TEMPLATE
    every = [*(["system"] if system else []), "user", *roles, "assistant"]
    # Each turn has a number of its own, so that no two can be taken for each other.
    turns = tuple(
        ChatMessage(role=role, content=f"{number}{text}")  # type: ignore[arg-type]
        for number, role in enumerate(every)
    )
    spoken = [turn.content + "<|im_end|>" for turn in turns if turn.role == "assistant"]
    examples = encode(tokenizer, ChatRow(messages=turns))
    found = [stretch for example in examples for stretch in learnt(tokenizer, example)]
    assert sorted("".join(found).split("<|im_end|>")[:-1]) == sorted(
        said.removesuffix("<|im_end|>") for said in spoken
    )
    num_learnt = sum(sum(example.is_answer) for example in examples)
    assert num_learnt == sum(len(tokenizer(said, add_special_tokens=False)["input_ids"]) for said in spoken)


def test_each_turn_is_learnt_in_the_context_it_is_generated_in(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING_TEMPLATE
    first, second = encode(tokenizer, row("ab", "ba", "cd", "dc"))
    for example, asked in ((first, ["ab"]), (second, ["ab", "ba", "cd"])):
        roles = ["user", "assistant", "user"]
        turns = [{"role": role, "content": text} for role, text in zip(roles, asked, strict=False)]
        prompt = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert list(example.tokens[: len(ids)]) == ids
        assert example.is_answer.index(True) == len(ids)


def test_thoughts_that_a_row_carries_are_learnt(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING_TEMPLATE
    thought = "<think>\nhm\n</think>\n\nba"
    (example,) = encode(tokenizer, row("ab", thought))
    assert learnt(tokenizer, example) == [thought + "<|im_end|>"]


def test_consecutive_assistant_turns_are_each_learnt(tokenizer: Any) -> None:
    turns = (("user", "ab"), ("assistant", "b"), ("assistant", "a"))
    chat = ChatRow(messages=tuple(ChatMessage(role=role, content=text) for role, text in turns))
    (example,) = encode(tokenizer, chat)
    assert learnt(tokenizer, example) == ["b<|im_end|>", "a<|im_end|>"]


def test_a_template_whose_prompt_is_no_prefix_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ '<|im_start|>assistant\\n' }}", "{{ 'Answer: ' }}"
    )
    with pytest.raises(ModelError, match="cannot be told from what it is given"):
        encode(tokenizer, row("ab", "ba"))


def test_a_control_token_in_an_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="Row 1: .*<|im_end|>.* exactly once"):
        encode(tokenizer, row("ab", "b<|im_end|>a"))


def test_a_template_that_never_ends_a_turn_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    with pytest.raises(ModelError, match="could not learn to stop"):
        ChatEncoder(tokenizer)


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('never') }}", "{{ nobody.at.all }}"])
def test_a_template_that_shows_no_conversation_is_refused(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="cannot show a question and its answer") as caught:
        ChatEncoder(tokenizer)
    assert "chat_template.jinja" in caught.value.remedy


def test_a_profile_that_the_tokenizer_cannot_write_is_refused(tokenizer: Any) -> None:
    encoder = ChatEncoder(tokenizer, profile=find_profile("emoji_think"))
    with pytest.raises(ModelError, match="no token for a part of what profile emoji_think writes"):
        list(encoder.encode([row("ab", "ba")]))


def test_a_tokenizer_without_a_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        ChatEncoder(tokenizer)


def test_a_row_that_the_template_refuses_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + tokenizer.chat_template
    )
    encoder = ChatEncoder(tokenizer)
    with pytest.raises(DataError, match="Row 8: .*no system turn"):
        list(encoder.encode([row("ab", "ba"), row("ab", "ba", system="x")], first_number=7))
