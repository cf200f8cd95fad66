from inference.estimate import running_bytes
from registry.model_shapes import ModelShape
from trainer.estimate import smallest_training_bytes, training_bytes

GB = 10**9
QWEN = ModelShape(
    num_parameters=596_049_920, hidden_size=1024, num_layers=28, vocab_size=151_936, num_key_values=2048
)


def test_qwen_of_600_million_fits_a_card_of_24_gigabytes_with_2048_tokens_at_a_time() -> None:
    assert 16 * GB < training_bytes(QWEN, tokens_per_batch=2048) < 24 * GB
    assert training_bytes(QWEN, tokens_per_batch=8192) > 24 * GB


def test_the_states_are_a_floor_that_no_batch_goes_below() -> None:
    floor = smallest_training_bytes(QWEN)
    assert 10 * GB < floor < 11 * GB
    assert training_bytes(QWEN, tokens_per_batch=1) > floor


def test_running_a_model_takes_a_fraction_of_training_it() -> None:
    assert 3 * GB < running_bytes(QWEN) < smallest_training_bytes(QWEN)
