"""Checkpoints that are whole or absent, and the newest one that a run can go on from.

A checkpoint `step-00000120` is a plain transformers directory with two more files, which only a resuming
trainer reads: `training_state.safetensors` (the optimizer's moments; the float32 weights where the model
itself is saved in bfloat16) and `training_state.json`. It is written under a temporary name, made durable,
sealed by its manifest and then renamed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from registry.errors import ManifestError
from registry.files import sync_directory, write_json
from registry.manifests import Manifest, list_files, verify, weights_sha256, write_manifest
from registry.records import Record
from trainer.core.models import save_model
from trainer.errors import ConfigError, DiskFull, TrainerError

TENSORS_NAME = "training_state.safetensors"
STATE_NAME = "training_state.json"
NAME_PATTERN = re.compile(r"step-(\d+)")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# safetensors reports the system's error as text alone.
NO_SPACE_TEXTS = tuple(f"(os error {number})" for number in NO_SPACE)


class TrainingState(Record):
    """What a run needs to go on, beside tensors. `run_digest` says which run that is.

    `other_random_states` are those of the second and further processes of a run that was split.
    `losses` are (sum in nats, answer tokens) of the last steps; the sums cover the whole job.
    """

    step: int = Field(ge=1)
    run_digest: str
    random_state: dict[str, str]
    other_random_states: tuple[dict[str, str], ...] = ()
    num_tokens: int = Field(ge=0)
    num_answers: int = Field(ge=1)
    loss_sum: float
    losses: tuple[tuple[float, int], ...]
    max_tokens: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file was verified."""

    path: Path
    manifest: Manifest
    state: TrainingState


def checkpoint_path(directory: Path, *, step: int) -> Path:
    """Zero-padded, so that text order is step order."""
    return directory / f"step-{step:08d}"


def save_checkpoint(
    directory: Path,
    *,
    model: Any,
    weights: dict[str, Tensor] | None = None,
    tokenizer: Any,
    dtype: torch.dtype,
    tensors: dict[str, Tensor],
    state: TrainingState,
    manifest: dict[str, Any],
) -> Checkpoint:
    """Write `directory/step-…`; `manifest` are the manifest's fields that files do not tell.

    `weights` are saved in place of the model's own, where those are not the whole.

    A good checkpoint of this step that stands there already stays and is given back: a trainer that was
    frozen until another took its place must neither remove what that one announced nor touch its half. One
    of another run is put aside under another name.
    Raises `DiskFull`; then nothing is left of it.
    """
    final = checkpoint_path(directory, step=state.step)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with _cleaned_up(temporary):
        temporary.mkdir(parents=True)
        save_model(model, state=weights, tokenizer=tokenizer, directory=temporary, dtype=dtype)
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary / TENSORS_NAME)
        write_json(temporary / STATE_NAME, value=state.model_dump(mode="json"))
        files = list_files(temporary)
        sealed = Manifest(files=files, weights_sha256=weights_sha256(files), step=state.step, **manifest)
        write_manifest(temporary, manifest=sealed)
        standing = _standing(final, run_digest=state.run_digest)
        if standing is not None:
            shutil.rmtree(temporary)
            return standing
        _make_way(final)
        temporary.rename(final)
        sync_directory(directory)
    return Checkpoint(path=final, manifest=sealed, state=state)


def _make_way(path: Path) -> None:
    """Remove what is damaged; what is good, if it is another run's, is not ours to remove."""
    if not path.exists() and not path.is_symlink():
        return
    try:
        found = read_checkpoint(path)
    except ManifestError:
        _remove(path)
        return
    aside = path.with_name(f"{path.name}.of-{found.state.run_digest[:16]}")
    _remove(aside)
    path.rename(aside)


def _remove(path: Path) -> None:
    """Whatever it is; of a link not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _standing(path: Path, *, run_digest: str) -> Checkpoint | None:
    try:
        found = read_checkpoint(path)
    except ManifestError:
        return None
    return found if found.state.run_digest == run_digest else None


def latest_valid(
    directory: Path, *, run_digest: str | None = None
) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not.

    With `run_digest` it is the newest of that run; others are passed over like damaged ones.
    """
    warnings: list[str] = []
    for _, path in sorted(_numbered(directory), reverse=True):
        try:
            found = read_checkpoint(path)
        except ManifestError as error:
            warnings.append(f"Checkpoint {path.name} is passed over: {error}")
            continue
        if run_digest is None or found.state.run_digest == run_digest:
            return found, tuple(warnings)
        warnings.append(
            f"Checkpoint {path.name} is passed over: it is of another run (job {found.manifest.job_id}), "
            "with other data, parent or settings."
        )
    return None, tuple(warnings)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that a run can go on from; `ManifestError` says what is wrong with it."""
    manifest = verify(path)
    if weights_sha256(manifest.files) != manifest.weights_sha256:
        raise ManifestError(f"{path}: the manifest's weights_sha256 is not that of its weight files.")
    for name in (TENSORS_NAME, STATE_NAME):
        if name not in manifest.files:
            raise ManifestError(f"{path} has no {name}: it cannot be resumed from.")
    try:
        state = TrainingState.model_validate_json((path / STATE_NAME).read_bytes())
        with safe_open(path / TENSORS_NAME, framework="pt") as tensors:
            num_tensors = len(tensors.keys())
    except (ValidationError, SafetensorError, OSError) as error:
        raise ManifestError(f"{path}: its training state cannot be read: {error}") from error
    if state.step != manifest.step or not num_tensors:
        raise ManifestError(f"{path}: its training state is not that of step {manifest.step}.")
    return Checkpoint(path=path, manifest=manifest, state=state)


def load_tensors(checkpoint: Checkpoint, *, device: torch.device) -> dict[str, Tensor]:
    """What was saved as `tensors`."""
    with safe_open(checkpoint.path / TENSORS_NAME, framework="pt", device=str(device)) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping


def prepare_directory(directory: Path) -> None:
    """Make it, before hours of training rely on it, and remove what a killed trainer left half written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output.checkpoints_dir = {str(directory)!r} cannot be made: {error.strerror}.",
            field="output.checkpoints_dir",
            value=str(directory),
            remedy="Check the path and its permissions.",
        ) from error
    for path in directory.glob(".step-*.tmp"):
        _remove(path)


def checkpoint_steps(num_steps: int, *, every: int | None, num_checkpoints: int) -> frozenset[int]:
    """Steps after which a checkpoint is saved, counted from 1; the last one always is."""
    if every is not None:
        return frozenset({*range(every, num_steps, every), num_steps})
    count = min(num_checkpoints, num_steps)
    return frozenset(num_steps * part // count for part in range(1, count + 1))


def _numbered(directory: Path) -> Iterator[tuple[int, Path]]:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        match = NAME_PATTERN.fullmatch(path.name)
        if match:
            yield int(match[1]), path


@contextmanager
def _cleaned_up(temporary: Path) -> Iterator[None]:
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _is_disk_full(error):
            raise DiskFull(
                f"{temporary.parent} has no space left for a checkpoint: {error}",
                remedy="Free space there; the checkpoints saved before are untouched.",
            ) from error
        if isinstance(error, OSError | SafetensorError):
            raise TrainerError(
                f"A checkpoint cannot be written to {temporary.parent}: {error}",
                remedy="Check the disk and the directory's permissions.",
            ) from error
        raise


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return isinstance(error, SafetensorError) and any(text in str(error) for text in NO_SPACE_TEXTS)
