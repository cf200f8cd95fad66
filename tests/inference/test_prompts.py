from __future__ import annotations

from dataclasses import replace

import pytest

from inference.errors import ModelError
from inference.model import LoadedModel
from inference.prompts import encode_prompt, encode_row
from inference.tiny import build_tiny_tokenizer
from registry.rows import ChatMessage, ChatRow

ROW = ChatRow(
    messages=(
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="Spell neon backward"),
        ChatMessage(role="assistant", content="noen"),
    )
)


def test_the_prompt_ends_where_the_assistant_begins_and_never_holds_the_answer(tiny: LoadedModel) -> None:
    text = tiny.tokenizer.decode(encode_row(tiny, ROW).prompt)
    assert text.endswith("neon backward<|im_end|>\n<|im_start|>assistant\n")
    assert "noen" not in text


def test_the_answer_ends_with_the_end_of_turn(tiny: LoadedModel) -> None:
    assert tiny.tokenizer.decode(encode_row(tiny, ROW).answer) == "noen<|im_end|>"


def test_prompt_and_answer_are_a_prefix_of_the_whole_conversation(tiny: LoadedModel) -> None:
    turns = [message.model_dump() for message in ROW.messages]
    whole = tiny.tokenizer.apply_chat_template(turns, return_dict=False)
    encoded = encode_row(tiny, ROW)
    assert tuple(whole[: len(encoded.prompt + encoded.answer)]) == encoded.prompt + encoded.answer


def _with_template(loaded: LoadedModel, template: str) -> LoadedModel:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    return replace(loaded, tokenizer=tokenizer)


def test_a_thinking_template_is_told_not_to_think(tiny: LoadedModel) -> None:
    loaded = _with_template(tiny, "{% if enable_thinking is false %}off{% else %}on{% endif %}")
    assert loaded.tokenizer.decode(encode_prompt(loaded, ROW.prompt)) == "off"


@pytest.mark.parametrize(
    ("template", "message"), [("{{ raise_exception('no system') }}", "no system"), ("{{ '' }}", "as nothing")]
)
def test_a_template_that_cannot_render_is_a_model_error(
    tiny: LoadedModel, template: str, message: str
) -> None:
    broken = _with_template(tiny, template)
    with pytest.raises(ModelError, match=message):
        encode_prompt(broken, ROW.prompt)
