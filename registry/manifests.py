"""The manifest of a model directory. A directory without a valid one is not a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from pydantic import AwareDatetime, Field, JsonValue, field_validator

from registry.errors import ManifestError
from registry.files import sha256_file, sha256_text, sync_directory, sync_tree, write_json
from registry.values import Record

MANIFEST_NAME = "manifest.json"
STATE_PREFIX = "training_state"
CHECKSUM = "manifest_sha256"  # of everything else in the file, whatever its layout


class FileEntry(Record):
    """One file of a checkpoint. `is_state` marks what only a resuming trainer needs."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=0)
    is_state: bool = False


class Manifest(Record):
    """What a checkpoint consists of and where it came from."""

    files: dict[str, FileEntry] = Field(min_length=1)
    weights_sha256: str
    job_id: str | None = None
    parent_checkpoint_id: str | None = None
    dataset_id: str | None = None
    step: int = Field(default=0, ge=0)
    num_steps: int = Field(default=0, ge=0)
    is_final: bool = False
    train_loss: float | None = None
    config: dict[str, JsonValue] = Field(default_factory=dict)
    code_version: str
    created_at: AwareDatetime

    @field_validator("files")
    @classmethod
    def _names_lie_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        """Readers join these names to directories, also to write there."""
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name or name in (".", MANIFEST_NAME):
                raise ValueError(f"{name!r} names no file inside the directory")
        return files


def list_files(directory: Path) -> dict[str, FileEntry]:
    """Hash every regular file of a model directory; training state is recognised by its prefix."""
    entries = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise ManifestError(
                f"{path} is a symbolic link.", remedy="Copy the file itself into the directory."
            )
        name = path.relative_to(directory)
        if path.is_file() and name.as_posix() != MANIFEST_NAME:
            entries[name.as_posix()] = FileEntry(
                sha256=sha256_file(path),
                num_bytes=path.stat().st_size,
                is_state=any(part.startswith(STATE_PREFIX) for part in name.parts),
            )
    return entries


def weights_sha256(files: dict[str, FileEntry]) -> str:
    """Identity of a model: the hash over the names and hashes of its safetensors weight files."""
    weights = {
        name: entry.sha256
        for name, entry in files.items()
        if name.endswith(".safetensors") and not entry.is_state
    }
    if not weights:
        raise ManifestError(
            "The directory holds no .safetensors weights.",
            remedy="Save the model with save_pretrained(); pickled weights (.bin, .pt) are never loaded.",
        )
    if len(weights) == 1:
        return next(iter(weights.values()))
    return sha256_text(json.dumps(weights, sort_keys=True))


def write_manifest(directory: Path, *, manifest: Manifest) -> None:
    """Make every file durable, then write the manifest with its own checksum, last."""
    sync_tree(directory)
    value = manifest.model_dump(mode="json")
    write_json(directory / MANIFEST_NAME, value=value | {CHECKSUM: _checksum(value)})
    sync_directory(directory)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a directory; `ManifestError` where it is missing, unreadable or changed.

    One without a checksum is of a time when none was written: it is read as it stands.
    """
    path = directory / MANIFEST_NAME
    try:
        value = json.loads(path.read_bytes())
        is_sealed = isinstance(value, dict) and CHECKSUM in value
        checksum = value.pop(CHECKSUM) if is_sealed else None
        manifest = Manifest.model_validate(value)
    except FileNotFoundError:
        raise ManifestError(
            f"{directory} has no {MANIFEST_NAME}, so it is not a checkpoint.",
            remedy="An interrupted write leaves such a directory; it is safe to remove.",
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    if is_sealed and checksum != _checksum(value):
        raise ManifestError(f"{path} does not have the sha256 that it says of itself: its content changed.")
    return manifest


def verify(directory: Path, *, with_state: bool = True) -> Manifest:
    """Read the manifest and check size and sha256 of every file it names.

    Files of training state are checked only if `with_state`; a release carries none of them.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest.files.items():
        if entry.is_state and not with_state:
            continue
        try:
            _verify_file(directory, name=name, entry=entry)
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
            raise ManifestError(f"{directory / name} cannot be read: {error}") from error
    return manifest


def _checksum(value: dict[str, JsonValue]) -> str:
    return sha256_text(json.dumps(value, sort_keys=True))


def _verify_file(directory: Path, *, name: str, entry: FileEntry) -> None:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ManifestError(f"{directory}: its manifest names {name!r}, which lies outside.")
    if not path.is_file():
        raise ManifestError(f"{path} is missing, although the manifest names it.")
    if path.stat().st_size != entry.num_bytes:
        raise ManifestError(f"{path} has {path.stat().st_size} bytes; the manifest says {entry.num_bytes}.")
    if sha256_file(path) != entry.sha256:
        raise ManifestError(f"{path} does not have the sha256 that the manifest says: its content changed.")
