from __future__ import annotations

import pytest
from pydantic import ValidationError

from inference.errors import RequestRefused
from inference.server.protocol import ChatRequest, check_supported, generation_settings

HELLO = [{"role": "user", "content": "hi"}]


def request(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({"messages": HELLO} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"functions": [{}]},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 1}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
        {"modalities": ["audio"]},
        {"audio": {"voice": "x"}},
    ],
)
def test_what_would_change_the_answer_and_cannot_be_done_is_refused_by_name(
    fields: dict[str, object],
) -> None:
    with pytest.raises(RequestRefused, match=f"does not support '{next(iter(fields))}'") as caught:
        check_supported(request(**fields))
    assert (caught.value.status_code, caught.value.param) == (400, next(iter(fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logprobs": False, "tools": [], "presence_penalty": 0},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"user": "someone", "store": True, "metadata": {"a": "b"}},
    ],
)
def test_what_changes_nothing_is_passed_over(fields: dict[str, object]) -> None:
    check_supported(request(**fields))


def test_generation_is_greedy_and_bounded_unless_asked_otherwise() -> None:
    settings = generation_settings(request(), max_new_tokens=50)
    assert (settings.temperature, settings.top_p, settings.max_new_tokens) == (0.0, 1.0, 50)


def test_every_setting_is_taken_over() -> None:
    fields = {"temperature": 0.7, "top_p": 0.8, "max_tokens": 9, "stop": "END", "seed": 4}
    settings = generation_settings(request(**fields), max_new_tokens=50)
    assert settings.model_dump() == {
        "max_new_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.8,
        "seed": 4,
        "stop": ("END",),
    }


def test_requests_without_a_seed_are_drawn_apart() -> None:
    seeds = {generation_settings(request(), max_new_tokens=5).seed for _ in range(20)}
    assert len(seeds) > 1


def test_max_completion_tokens_comes_before_max_tokens() -> None:
    settings = generation_settings(request(max_tokens=3, max_completion_tokens=7), max_new_tokens=50)
    assert settings.max_new_tokens == 7


def test_more_tokens_than_allowed_are_refused() -> None:
    with pytest.raises(RequestRefused, match="51 tokens were asked for"):
        generation_settings(request(max_tokens=51), max_new_tokens=50)


@pytest.mark.parametrize("stop", ["", [""], ["a", "b", "c", "d", "e"]])
def test_unusable_stop_strings_are_refused(stop: object) -> None:
    with pytest.raises(RequestRefused, match="'stop' takes up to 4"):
        generation_settings(request(stop=stop), max_new_tokens=5)


def test_text_parts_are_joined_and_a_developer_is_a_system_message() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = request(messages=[{"role": "developer", "content": "be"}, {"role": "user", "content": parts}])
    assert [(turn.role, turn.content) for turn in chat.chat_messages] == [("system", "be"), ("user", "ab")]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x"},
        {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
        {"role": "user"},
        {"role": "user", "content": None},
    ],
)
def test_what_is_no_text_turn_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        request(messages=[message])


def test_the_likeliest_tokens_cannot_be_had_without_logprobs() -> None:
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], "top_logprobs": 3})
    with pytest.raises(RequestRefused, match="needs 'logprobs' to be true"):
        check_supported(request)
