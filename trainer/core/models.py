"""Load the model that training starts from, and save the one it leads to: safetensors, this disk only."""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from registry.errors import ManifestError
from registry.files import write_json
from registry.manifests import MANIFEST_NAME, list_files, verify, weights_sha256
from trainer.core.data import TokenizedDataset
from trainer.core.exchange import own_part
from trainer.core.loss import Batch, answer_logits
from trainer.core.memory import is_out_of_memory
from trainer.core.runtime import only_looking
from trainer.errors import ConfigError, ModelError, OutOfMemory

# Two ways to the same logits differ by rounding alone.
PROJECTION_TOLERANCE = 1e-3
PROBED_TOKENS = 16
# OPT and RoBERTa keep two rows before the first position.
SPARE_POSITIONS = 2
MAX_SHOWN = 80


def identify_model(directory: Path) -> str:
    """Hex sha256 of a model's weights; verified against its manifest where it has one."""
    try:
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"{directory} is not a model directory: it has no config.json.",
                remedy="Save a model into it with save_pretrained().",
            )
        if (directory / MANIFEST_NAME).is_file():
            return verify(directory, with_state=False).weights_sha256
        return weights_sha256(list_files(directory))
    except ManifestError as error:
        raise ModelError(error.message, remedy=error.remedy) from error
    except OSError as error:  # such as a name that is too long
        raise ModelError(
            f"model.path = {_shortened(directory)!r} cannot be read: {error.strerror}.",
            remedy="Check the path and its permissions.",
        ) from error


def load_tokenizer(directory: Path) -> Any:
    """A transformers tokenizer; `ModelError` where the directory has no usable one."""
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged tokenizer.json surfaces as a bare Exception of tokenizers
        raise ModelError(f"{directory}: its tokenizer cannot be loaded: {_first_line(error)}") from error


def load_model(directory: Path, *, device: torch.device, tokenizer: Any) -> Any:
    """A causal language model in training mode, its weights in float32, on `device`.

    Weights stay in float32 whatever the arithmetic uses: a step of 1e-5 is lost in bfloat16's eight bits.
    Raises `ModelError` for what is not a complete causal language model, `OutOfMemory`.
    """
    try:
        with no_progress_bars():
            loading: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        model, report = loading
        model = model.to(device).train()
    except Exception as error:  # transformers and safetensors share no root; all mean: not loadable
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"{directory} does not fit in the memory of {device}.", remedy="Free the device."
            ) from error
        raise ModelError(f"{directory} cannot be loaded as a model: {_first_line(error)}") from error
    _check_report(directory, report=report)
    _check_vocabulary(directory, model=model, tokenizer=tokenizer)
    return model


def save_model(
    model: Any,
    *,
    tokenizer: Any,
    directory: Path,
    dtype: torch.dtype,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights in `dtype`, configuration and tokenizer as a plain transformers directory.

    `state` stands in for the model's own.
    """
    state = model.state_dict() if state is None else state
    with no_progress_bars():
        model.save_pretrained(directory, state_dict=_converted(state, dtype=dtype))
        tokenizer.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    # save_pretrained() notes the dtype of the model in memory; loaders believe this file.
    write_json(path, value={**config, "dtype": str(dtype).removeprefix("torch.")})


def check_projection(model: Any, *, batch: Batch) -> None:
    """`ModelError` unless the model's logits are its output projection of its hidden states.

    Some families scale or cap their logits after the projection; `answer_logits` would train another model.
    """
    # A few tokens tell as much: logits of a whole row would be the largest thing that a small run ever holds.
    ids = batch.input_ids[:, :PROBED_TOKENS]
    batch = replace(batch, input_ids=ids, positions=torch.arange(ids.numel(), device=ids.device))
    with only_looking(model):
        ours = answer_logits(model, batch=batch)
        theirs = model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.positions]
    _check_finite(model, ours=ours, theirs=theirs)
    scale = float(theirs.abs().max().clamp(min=1.0))
    difference = float((ours - theirs.float()).abs().max())
    if not difference <= PROJECTION_TOLERANCE * scale:
        raise ModelError(
            f"{type(model).__name__} changes its logits after the output projection (by {difference:.3g}), "
            "which this trainer does not do.",
            remedy="Train a model family without logit scaling or soft-capping, such as Qwen3.",
        )


def check_causal(model: Any, *, batch: Batch) -> None:
    """`ModelError` where a token changes what the model says before it.

    An encoder loads as a language model too, and would learn to copy what it is to foretell: its loss falls
    to nothing and means nothing.
    """
    ids = batch.input_ids[:1, :PROBED_TOKENS]
    if ids.shape[1] < 2:  # nothing stands behind anything
        return
    with only_looking(model):
        whole, cut = (model(input_ids=one, use_cache=False).logits for one in (ids, ids[:, :-1]))
    known = torch.isfinite(cut)
    change = (whole[:, :-1] - cut)[known].abs().max()
    if not change <= PROJECTION_TOLERANCE * cut[known].abs().max().clamp(min=1.0):
        raise ModelError(
            f"{type(model).__name__} looks at the words that it is to foretell (they change what it says by "
            f"{float(change):.3g}): trained so, its loss would mean nothing.",
            remedy="Train a decoder, such as Qwen3; BERT and its like read both ways.",
        )


def check_positions(model: Any, *, dataset: TokenizedDataset, warn: Callable[[str], None]) -> None:
    """`ConfigError` where a row is longer than a model's table of positions.

    A model that computes its positions reads longer rows too: that is worth a warning.
    """
    positions = _num_positions(model)
    longest = int(dataset.lengths.argmax())
    num_tokens = int(dataset.lengths[longest])
    # The last token of a row is only ever a target.
    if positions is None or num_tokens - 1 <= positions:
        return
    subject = f"Row {dataset.row_numbers[longest]} has {num_tokens} tokens; {type(model).__name__}"
    remedy = (
        f"Set max_length to {positions}: longer rows are then left out, or cut off where data.overlong is "
        "'truncate'."
    )
    if not _has_table(model, num_positions=positions):
        warn(f"{subject} was made for {positions} and may learn little from what stands behind. {remedy}")
        return
    raise ConfigError(
        f"{subject} has {positions} positions and cannot read it.",
        field="model.max_length",
        value=num_tokens,
        remedy=remedy,
    )


def most_tokens(model: Any) -> int | None:
    """The tokens of the longest row that a model can read, whose last one is a target; None: any number."""
    positions = _num_positions(model)
    if positions is None or not _has_table(model, num_positions=positions):
        return None
    return positions + 1


def checkpoint_gradients(model: Any) -> None:
    """From here on a layer keeps its input alone and is computed again when it goes backward.

    The gradients are the same, to the bit on a CPU.
    """
    options = {"use_reentrant": False}
    enable = getattr(model, "activation_checkpointing_enable", None)  # the newer name of the same
    (enable or model.gradient_checkpointing_enable)(options)


def has_finite_weights(model: Any) -> bool:
    """True where no parameter, or this process's part of it, holds NaN or infinity."""
    return all(bool(torch.isfinite(own_part(parameter)).all()) for parameter in model.parameters())


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading and saving inside this block print nothing; the setting before is restored."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def copied(tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors copied into the computer's memory, floating ones in `dtype` if given; tied ones stay tied."""
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if tensor.data_ptr() not in found:
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            found[tensor.data_ptr()] = tensor.detach().to("cpu", wanted, copy=True)
    return {name: found[tensor.data_ptr()] for name, tensor in tensors.items()}


def _converted(state: Mapping[str, Tensor], *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors in another dtype; tied ones stay tied, so that they are written once."""
    converted: dict[int, Tensor] = {}
    for tensor in state.values():
        if tensor.data_ptr() not in converted:
            converted[tensor.data_ptr()] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: converted[tensor.data_ptr()] for name, tensor in state.items()}


def _check_report(directory: Path, *, report: Mapping[str, Any]) -> None:
    """Refuse weights that transformers would fill in at random with no more than a log line."""
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = sorted(map(str, report.get(kind) or ()))
        if names:
            raise ModelError(
                f"{directory}: {len(names)} weights do not match config.json ({kind}: {names[0]}).",
                remedy="Config and weights come from different models, or a weight file is incomplete.",
            )


def _check_vocabulary(directory: Path, *, model: Any, tokenizer: Any) -> None:
    num_embeddings = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= num_embeddings:
        raise ModelError(
            f"{directory}: the tokenizer has token {highest}, the model {num_embeddings} embeddings.",
            remedy="The tokenizer belongs to another model.",
        )


def _check_finite(model: Any, *, ours: Tensor, theirs: Tensor) -> None:
    # A model may well forbid a token by minus infinity after the projection.
    if torch.isfinite(ours).all() and not theirs.isnan().any():
        return
    raise ModelError(
        f"The outputs of {type(model).__name__} are not finite: its weights, or numbers in its config.json, "
        "are NaN or infinite.",
        remedy="Take a sound copy of the model, or a checkpoint from before it broke.",
    )


def _num_positions(model: Any) -> int | None:
    """That a model was made for, where its configuration says so."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found >= 1 else None


def _has_table(model: Any, *, num_positions: int) -> bool:
    """True where positions are looked up, learnt or not."""
    words = model.get_input_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    tables = [table for table in tables if table is not words.weight]
    tables += [buffer for buffer in model.buffers() if buffer.ndim == 2]
    return any(num_positions <= len(table) <= num_positions + SPARE_POSITIONS for table in tables)


def _shortened(directory: Path) -> str:
    text = str(directory)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
