from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inference.detokenize import ReplyText


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, as Qwen's, with no merges: a character outside ASCII takes two to four tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES = byte_tokenizer()


def pieces(text: str, *, stop: tuple[str, ...] = ()) -> list[str]:
    reply = ReplyText(BYTES, stop=stop)
    shown = []
    for token_id in BYTES(text)["input_ids"]:
        shown.append(reply.add(token_id))
        if reply.is_stopped:
            break
    return [*shown, reply.finish()]


@given(st.text(max_size=40))
def test_the_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_a_character_of_several_tokens_comes_whole() -> None:
    assert pieces("aé🙂b") == ["a", "", "é", "", "", "", "🙂", "b", ""]


def test_a_character_cut_off_by_the_end_is_shown_as_unreadable() -> None:
    reply = ReplyText(BYTES)
    assert reply.add(BYTES("é")["input_ids"][0]) == ""
    assert reply.finish() == "\ufffd"


@given(
    st.text(alphabet="abé", max_size=30),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_nothing_of_a_stop_string_is_ever_shown(text: str, stop: list[str]) -> None:
    shown = "".join(pieces(text, stop=tuple(stop)))
    ends = [place + len(found) for found in stop if (place := text.find(found)) >= 0]
    if not ends:
        assert shown == text
        return
    seen = text[: min(ends)]
    assert shown == seen[: min(seen.find(found) for found in stop if found in seen)]


@pytest.mark.parametrize(("text", "expected"), [("ab", "ab"), ("abc", ""), ("abd", "abd")])
def test_a_begun_stop_string_is_held_until_it_is_clear(text: str, expected: str) -> None:
    reply = ReplyText(BYTES, stop=("abc",))
    ids = BYTES(text)["input_ids"]
    assert [reply.add(ids[0]), reply.add(ids[1])] == ["", ""]
    assert "".join([reply.add(token_id) for token_id in ids[2:]] + [reply.finish()]) == expected
