from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.progress import no_progress_bars
from inference.tiny import CHARACTERS, TURN_END, build_tiny_model, build_tiny_tokenizer

TOKENIZER = build_tiny_tokenizer()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    first, second, other = (
        {path.name: path.read_bytes() for path in build_tiny_model(tmp_path / name, seed=seed).iterdir()}
        for name, seed in (("first", 3), ("second", 3), ("other", 4))
    )
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]


def test_plain_transformers_loads_it_with_about_eight_hundred_thousand_parameters(
    tiny_directory: Path,
) -> None:
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(tiny_directory)
    tokenizer = AutoTokenizer.from_pretrained(tiny_directory)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert 0.75e6 < sum(weight.numel() for weight in model.parameters()) < 1e6
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(TURN_END)


@given(st.text(alphabet=CHARACTERS, max_size=80))
def test_printable_text_decodes_to_itself(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text


def test_the_vocabulary_covers_printable_ascii() -> None:
    assert set(string.printable) - set(CHARACTERS) == set("\t\r\x0b\x0c")


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_the_chat_template_names_every_role(role: str) -> None:
    text = TOKENIZER.apply_chat_template([{"role": role, "content": "hi"}], tokenize=False)
    assert text == f"<|im_start|>{role}\nhi<|im_end|>\n"


def test_the_generation_prompt_opens_the_assistants_turn() -> None:
    turns = [{"role": "user", "content": "hi"}]
    text = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
