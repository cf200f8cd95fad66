"""A whole small language model made on the spot: for tests, for the demo, and for trying a new host.

It has the real system's architecture (Qwen3, tied embeddings, ChatML turns) at about 0.8 million
parameters, and a tokenizer of single characters, which suits tasks on letters such as reversing a word.
"""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from inference.progress import no_progress_bars

PAD_TOKEN = "<|pad|>"  # noqa: S105
UNKNOWN_TOKEN = "<unk>"  # noqa: S105
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (PAD_TOKEN, UNKNOWN_TOKEN, TURN_START, TURN_END)
CHARACTERS = "\n" + "".join(sorted(string.ascii_letters + string.digits + string.punctuation + " "))
MAX_POSITIONS = 2048
# A role's line of the chat template is one token, as in the real model's tokenizer.
ROLE_LINES = ("system\n", "user\n", "assistant\n")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tiny_model(
    directory: Path,
    *,
    seed: int = 0,
    phrases: Sequence[str] = (),
    hidden_size: int = 128,
    num_layers: int = 4,
) -> Path:
    """Save an untrained model with its tokenizer into `directory`; the same bytes for the same arguments.

    `phrases` are texts that stand in nearly every row, such as an instruction. Each becomes one token, as a
    trained tokenizer would make it, which shortens a row several times over.

    The directory loads with plain `AutoModelForCausalLM` and `AutoTokenizer`. It has no manifest: who
    registers it writes one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tiny_tokenizer(phrases)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(_config(tokenizer, hidden_size=hidden_size, num_layers=num_layers))
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with no_progress_bars():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def build_tiny_tokenizer(phrases: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token a phrase, else a character of printable ASCII and newline; all of it decodes to itself."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in (*ROLE_LINES, *phrases)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
    )


def _config(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, num_layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
