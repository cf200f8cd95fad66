"""Which way the loss is computed, and in what chunks."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.cross_entropy import CHUNK_LOGITS, answers_per_chunk, is_chunked


def test_small_vocabularies_stay_plain_and_large_ones_are_chunked() -> None:
    assert not is_chunked("auto", num_answers=8192, vocab_size=1000)
    assert is_chunked("auto", num_answers=8192, vocab_size=151_936)
    assert not is_chunked("auto", num_answers=100, vocab_size=151_936)


def test_what_was_asked_for_is_done_whatever_the_size() -> None:
    assert is_chunked("chunked", num_answers=1, vocab_size=2)
    assert not is_chunked("plain", num_answers=8192, vocab_size=151_936)
    assert not is_chunked("liger", num_answers=8192, vocab_size=151_936)


@given(num_answers=st.integers(1, 100_000), vocab_size=st.integers(1, 300_000))
def test_chunks_are_even_and_none_is_too_large(num_answers: int, vocab_size: int) -> None:
    size = answers_per_chunk(num_answers, vocab_size=vocab_size)
    num_chunks = -(-num_answers // size)
    assert size * vocab_size <= CHUNK_LOGITS
    assert num_chunks * size - num_answers < num_chunks
