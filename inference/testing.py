"""Builders for tests of this room and of rooms that need a model directory."""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.model import LoadedModel, load_model
from inference.progress import no_progress_bars
from inference.tiny import build_tiny_model
from registry.manifests import Manifest, list_files, weights_sha256, write_manifest

SEALED_AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


def seal(directory: Path) -> Path:
    """Write the manifest that makes a model directory a checkpoint or a release."""
    files = list_files(directory)
    manifest = Manifest(
        files=files, weights_sha256=weights_sha256(files), code_version="testing", created_at=SEALED_AT
    )
    write_manifest(directory, manifest=manifest)
    return directory


def build_sealed_tiny_model(directory: Path, *, seed: int = 0) -> Path:
    """The small model of `inference.tiny` with its manifest."""
    return seal(build_tiny_model(directory, seed=seed))


def build_talkative_model(directory: Path, *, seed: int = 0) -> Path:
    """A sealed model whose greedy replies differ by prompt and end after a few tokens."""
    build_tiny_model(directory, seed=seed)
    loaded = load_model(directory, device="cpu", verify_files=False)
    return _saved(make_talkative(loaded, seed=seed + 1).model, directory=directory)


def build_fragile_model(directory: Path, *, character: str, seed: int = 0) -> Path:
    """A sealed model of finite weights whose logits are not finite for prompts that hold a character.

    The character's embedding points where no other does. There the first layer multiplies it beyond float32,
    and the second layer's norm makes inf * 0 of it.
    """
    build_tiny_model(directory, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    layer = model.model.layers[0]
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.model.embed_tokens.weight[:, 0] = 0.0
        (token_id,) = tokenizer(character, add_special_tokens=False)["input_ids"]
        model.model.embed_tokens.weight[token_id] = 0.0
        model.model.embed_tokens.weight[token_id, 0] = 1.0
        layer.self_attn.o_proj.weight[0] = 0.0
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight[0] = 0.0
            projection.weight[0, 0] = 100.0
        layer.mlp.down_proj.weight[:, 0] = 3e38
    return _saved(model, directory=directory)


def build_mumbling_model(directory: Path, *, ends_at_once: bool) -> Path:
    """A sealed model that loads and has finite logits, and says nothing, or padding for ever."""
    build_tiny_model(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    with torch.no_grad():
        # All tokens are equally likely: the first of the vocabulary is taken, which pads.
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    if ends_at_once:
        pad, end = model.generation_config.pad_token_id, model.generation_config.eos_token_id
        model.generation_config.eos_token_id = [end, pad]
    return _saved(model, directory=directory)


def _saved(model: Any, *, directory: Path) -> Path:
    model.config.tie_word_embeddings = False
    with no_progress_bars():
        model.save_pretrained(directory)
    return seal(directory)


def make_talkative(loaded: LoadedModel, *, seed: int = 1) -> LoadedModel:
    """Change the weights in memory so that greedy replies differ by prompt and end after a few tokens.

    An untrained model with small weights repeats one token for ever, which would hide mistakes in dropping
    finished rows. The output embeddings are untied from the input's; they lose nothing else.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in loaded.model.model.layers.parameters():
            if weight.ndim == 2:
                weight.mul_(10.0)
        head = 0.3 * torch.randn(loaded.model.lm_head.weight.shape, generator=generator)
        head[loaded.end_of_turn_id] *= 2.5
        loaded.model.config.tie_word_embeddings = False
        loaded.model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return loaded
