"""What is learnt is what is asked: trainer and inference see the same tokens in the same row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.manifests import read_manifest, write_manifest
from registry.profiles.catalogue import OWN, find_profile
from registry.profiles.emoji_think import STOPPING, THINKING
from registry.rows import ChatMessage, ChatRow

pytestmark = pytest.mark.model

# Qwen3's way: an answer without thoughts opens with empty ones, in the prompt that asks with thinking off
# and in the last turn of a rendered conversation; earlier turns are shown without them.
THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)

ROWS = (
    (("user", "Spell this word backward (example: sun -> nus): neon"), ("assistant", "noen")),
    (("system", "Be brief."), ("user", "Say 1 + 1."), ("assistant", "2")),
    (("user", "a"), ("assistant", "b"), ("user", "  c\n"), ("assistant", " d e\nf")),
)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inference.testing import build_sealed_tiny_model

    return build_sealed_tiny_model(tmp_path_factory.mktemp("agree") / "model")


@pytest.mark.parametrize("template", [None, THINKING_TEMPLATE], ids=["plain", "thinking"])
@pytest.mark.parametrize("turns", ROWS, ids=["one turn", "system", "two turns"])
def test_a_row_is_scored_on_the_tokens_that_are_learnt(
    model_directory: Path, template: str | None, turns: tuple[tuple[Any, str], ...]
) -> None:
    from inference.model import load_model
    from inference.prompts import encode_row
    from trainer.core.chat import ChatEncoder

    loaded = load_model(model_directory, device="cpu", num_threads=1)
    if template is not None:
        loaded.tokenizer.chat_template = template
    row = ChatRow(messages=tuple(ChatMessage(role=role, content=content) for role, content in turns))
    scored = encode_row(loaded, row)
    (examples,) = ChatEncoder(loaded.tokenizer).encode([row])
    last = examples[-1]
    assert last.tokens == (*scored.prompt, *scored.answer)
    num_answer = len(scored.answer)
    assert last.is_answer[-num_answer:] == (True,) * num_answer
    assert not last.is_answer[-num_answer - 1]


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_profile_asks_in_the_way_that_was_learnt(model_directory: Path, name: str) -> None:
    from inference.model import load_model
    from inference.prompts import encode_row
    from trainer.core.chat import ChatEncoder

    profile = find_profile(name)
    loaded = replace(load_model(model_directory, device="cpu", num_threads=1), profile=profile)
    loaded.tokenizer.add_tokens([*THINKING, *STOPPING])  # which a tokenizer of bytes has by itself
    contents = ("( ADD 1 2 )", "3", "(mul 03 4)", "12")
    roles: tuple[Any, ...] = ("user", "assistant") * 2
    row = ChatRow(
        messages=tuple(
            ChatMessage(role=role, content=text) for role, text in zip(roles, contents, strict=True)
        )
    )
    scored = encode_row(loaded, row)
    (examples,) = ChatEncoder(loaded.tokenizer, profile=profile).encode([row])
    assert examples[-1].tokens == (*scored.prompt, *scored.answer)
    learnt = [
        token
        for token, is_answer in zip(examples[-1].tokens, examples[-1].is_answer, strict=True)
        if is_answer
    ]
    assert tuple(learnt[-len(scored.answer) :]) == scored.answer


def test_a_checkpoint_is_asked_with_the_profile_of_its_manifest(tmp_path: Path) -> None:
    from inference.errors import ModelError
    from inference.model import load_model
    from inference.testing import build_sealed_tiny_model

    directory = build_sealed_tiny_model(tmp_path / "model")
    assert load_model(directory, device="cpu").profile.name == "plain_sft"
    manifest = read_manifest(directory)
    for name in ("emoji_think", "gone"):
        write_manifest(directory, manifest=manifest.changed(config={"profile": {"name": name}}))
        if name == "gone":
            with pytest.raises(ModelError, match="no profile 'gone'"):
                load_model(directory, device="cpu")
        else:
            assert load_model(directory, device="cpu").profile.name == name
