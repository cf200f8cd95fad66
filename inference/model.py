"""Load a verified model directory: safetensors only, from this disk only, never with its own code."""

# mypy: allow-untyped-calls
# transformers annotates only part of its functions.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from inference.errors import ModelError, OutOfMemory
from inference.progress import no_progress_bars
from registry.errors import ProfileError
from registry.manifests import MANIFEST_NAME, list_files, read_manifest, verify
from registry.manifests import weights_sha256 as hash_of_weights
from registry.profiles.base import Profile
from registry.profiles.catalogue import PLAIN, find_profile

Device = str
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
# What from_pretrained might read: such a file outside the manifest would be used unverified.
LOADABLE_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".py", ".bin", ".pt"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")
_SENTINEL = "tandem"


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """What everybody who asks a model must know of it, wherever its weights lie.

    `profile` is the one that it was trained with: it is asked, and its replies are read, in that way.

    `end_of_turn_id` closes an assistant's turn in the chat template: it is scored as the last token of an
    expected answer. `stop_token_ids` end a generation. `max_positions` bounds prompt plus answer. How
    probable a reply would be with the logits divided by each of `confidence_temperatures` is told with it.
    """

    tokenizer: Any = field(repr=False)
    directory: Path
    weights_sha256: str
    end_of_turn_id: int
    stop_token_ids: frozenset[int]
    pad_token_id: int
    max_positions: int
    confidence_temperatures: tuple[float, ...] = ()
    profile: Profile = PLAIN

    @property
    def is_alive(self) -> bool:
        """False where what runs it is gone."""
        return True


@dataclass(frozen=True, kw_only=True)
class LoadedModel(TextModel):
    """A model in this process, ready to answer."""

    model: Any = field(repr=False)
    device: torch.device
    has_finite_weights: bool


def load_model(
    directory: Path,
    *,
    device: Device = "auto",
    dtype: DtypeName = "auto",
    num_threads: int | None = None,
    verify_files: bool = True,
    expected_sha256: str | None = None,
) -> LoadedModel:
    """Load a model directory onto a device, in evaluation mode.

    `device` "auto" is CUDA where there is one. `dtype` "auto" is the checkpoint's own on CUDA and float32
    on a CPU, where half precision is slow and no more faithful. With `verify_files` every file is checked
    against the manifest first; without, the directory needs none. Raises `ManifestError`, or `ModelError`
    for what is not a complete chat model or not the weights `expected_sha256` names.
    """
    sha256 = _verified_weights(directory, verify_files=verify_files)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise ModelError(
            f"{directory} holds weights {sha256[:12]}, not {expected_sha256[:12]} as asked.",
            remedy="Copy the checkpoint again.",
        )
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    target = _device(device)
    tokenizer = _load_tokenizer(directory)
    model = _load_weights(directory, device=target, dtype=dtype)
    _check_vocabulary(
        directory, num_embeddings=model.get_input_embeddings().num_embeddings, tokenizer=tokenizer
    )
    return LoadedModel(
        model=model,
        device=target,
        has_finite_weights=_has_finite_weights(model),
        **_description(directory, tokenizer=tokenizer, config=model.config, how=model.generation_config),
        weights_sha256=sha256,
    )


def load_text_model(directory: Path) -> TextModel:
    """All of a model directory but its weights, which another process runs; every file is verified.

    Raises `ManifestError`, or `ModelError` for what is not a complete chat model.
    """
    sha256 = _verified_weights(directory, verify_files=True)
    tokenizer = _load_tokenizer(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        has_how = (directory / "generation_config.json").is_file()
        how = GenerationConfig.from_pretrained(directory, local_files_only=True) if has_how else None
    except Exception as error:  # transformers' errors share no root; all mean: not loadable
        raise ModelError(f"{directory} has an unreadable configuration: {_first_line(error)}") from error
    _check_vocabulary(directory, num_embeddings=int(config.vocab_size), tokenizer=tokenizer)
    described = _description(directory, tokenizer=tokenizer, config=config, how=how or config)
    return TextModel(weights_sha256=sha256, **described)


def _verified_weights(directory: Path, *, verify_files: bool) -> str:
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{directory} is not a model directory: it has no config.json.",
            remedy="Save a model into it with save_pretrained().",
        )
    if not verify_files:
        return hash_of_weights(list_files(directory))
    manifest = verify(directory, with_state=False)
    unlisted = sorted(
        path.name
        for path in directory.iterdir()
        if path.suffix in LOADABLE_SUFFIXES and path.name not in manifest.files and path.name != MANIFEST_NAME
    )
    if unlisted:
        raise ModelError(f"{directory} holds {unlisted[0]}, which its manifest does not name.")
    sha256 = hash_of_weights(manifest.files)
    if sha256 != manifest.weights_sha256:
        raise ModelError(f"{directory}: the manifest's weights_sha256 is not that of its weight files.")
    return sha256


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"{name!r} names no device: {_first_line(error)}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"Device {name!r} was asked for, but torch sees no CUDA device.",
            remedy="Check the driver with nvidia-smi, or set the device to 'auto'.",
        )
    return device


def _load_tokenizer(directory: Path) -> Any:
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{directory} has no tokenizer.", remedy="Save it beside the model with save_pretrained()."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged tokenizer.json surfaces as a bare Exception of tokenizers
        raise ModelError(f"{directory}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"{directory}: its tokenizer has no chat template, so no conversation can be put to the model.",
            remedy="Add chat_template.jinja, for example from the base model.",
        )
    return tokenizer


def _load_weights(directory: Path, *, device: torch.device, dtype: DtypeName) -> Any:
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    try:
        with no_progress_bars():
            loading: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, each by name
            )
        model, report = loading
        _check_report(directory, report=report)
        return model.to(device).eval().requires_grad_(requires_grad=False)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{directory} does not fit in the memory of {device}.",
            remedy="Free the device, or choose another.",
        ) from error
    except ModelError:
        raise
    except Exception as error:  # transformers and safetensors share no root; all mean: not loadable
        raise ModelError(f"{directory} cannot be loaded as a model: {_first_line(error)}") from error


def _check_report(directory: Path, *, report: Mapping[str, Any]) -> None:
    """Refuse weights that transformers would fill in at random with no more than a log line."""
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = sorted(map(str, report.get(kind) or ()))
        if names:
            raise ModelError(
                f"{directory}: {len(names)} weights do not match config.json ({kind}: {names[0]}).",
                remedy="Config and weights come from different models, or a weight file is incomplete.",
            )


def _check_vocabulary(directory: Path, *, num_embeddings: int, tokenizer: Any) -> None:
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= num_embeddings:
        raise ModelError(
            f"{directory}: the tokenizer has token {highest}, the model {num_embeddings} embeddings.",
            remedy="The tokenizer belongs to another model.",
        )


def _description(directory: Path, *, tokenizer: Any, config: Any, how: Any) -> dict[str, Any]:
    """The fields of a `TextModel` that tokenizer and configurations tell."""
    end_of_turn_id = _end_of_turn_id(directory, tokenizer=tokenizer)
    ends = (*_ids(how.eos_token_id), *_ids(tokenizer.eos_token_id))
    pad_token_id = tokenizer.pad_token_id
    return {
        "tokenizer": tokenizer,
        "directory": directory,
        "end_of_turn_id": end_of_turn_id,
        "stop_token_ids": frozenset((end_of_turn_id, *ends)),
        "pad_token_id": end_of_turn_id if pad_token_id is None else pad_token_id,
        "max_positions": int(getattr(config, "max_position_embeddings", 0) or 1 << 30),
        "profile": _trained_profile(directory),
    }


def _end_of_turn_id(directory: Path, *, tokenizer: Any) -> int:
    """The token that the chat template puts after an assistant's words; a tokenizer's eos may be another."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # jinja raises whatever a template raises
        raise ModelError(f"{directory}: its chat template fails: {_first_line(error)}") from error
    rest = text.rpartition(_SENTINEL)[2]
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else []
    if ids and ids[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder):
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{directory}: neither chat template nor tokenizer says what ends a turn.")
    return int(tokenizer.eos_token_id)


def _trained_profile(directory: Path) -> Profile:
    """What the manifest's configuration names; plain where it names none, as imported models do."""
    if not (directory / MANIFEST_NAME).is_file():
        return PLAIN
    section = read_manifest(directory).config.get("profile")
    name = section.get("name") if isinstance(section, dict) else None
    try:
        return PLAIN if name is None else find_profile(str(name))
    except ProfileError as error:
        raise ModelError(
            f"{directory} was trained with a profile that is not here: {error.message}",
            remedy="Install on this host the package that brings it.",
        ) from error


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _has_finite_weights(model: Any) -> bool:
    return all(
        bool(torch.isfinite(tensor).all()) for tensor in model.parameters() if tensor.is_floating_point()
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
