"""The releases on this host's disk: which there are, which is current, and whether one can be served."""

from __future__ import annotations

import re
from pathlib import Path

from inference.answering import generate
from inference.errors import InferenceError, ReleaseError
from inference.model import LoadedModel, load_model
from inference.prompts import encode_prompt
from registry.errors import RegistryError
from registry.manifests import Manifest, read_manifest, verify
from registry.records import GenerationSettings
from registry.rows import ChatMessage
from registry.serving import CURRENT_LINK, RELEASE_ID_PATTERN, ReleaseInfo

PROBE = (ChatMessage(role="user", content="Say yes."),)
PROBE_SETTINGS = GenerationSettings(max_new_tokens=8)


def release_directory(releases_dir: Path, release_id: str) -> Path:
    """Where a release lies. `ReleaseError` for an id that is none and for a release that is not there.

    A client chooses an id, never a path: the id is one name, and the directory no link.
    """
    if not re.fullmatch(RELEASE_ID_PATTERN, release_id) or release_id == CURRENT_LINK:
        raise ReleaseError(f"{release_id!r} is not a release id.")
    directory = releases_dir / release_id
    if directory.is_symlink() or not directory.is_dir():
        raise ReleaseError(
            f"There is no release {release_id!r} on this host.", remedy="Deploy it, or see GET /models."
        )
    return directory


def current_release_id(releases_dir: Path) -> str | None:
    """What the link `current` names; `None` without one, `ReleaseError` if it names no release here."""
    link = releases_dir / CURRENT_LINK
    if not link.is_symlink():
        if link.exists():
            raise ReleaseError(f"{link} is not a symbolic link to a release.")
        return None
    target = releases_dir / link.readlink()
    if target.parent.resolve() != releases_dir.resolve():
        raise ReleaseError(f"{link} leads out of {releases_dir}.", remedy="Link it to a release there.")
    return release_directory(releases_dir, target.name).name


def list_releases(releases_dir: Path, *, active_id: str | None) -> list[ReleaseInfo]:
    """Every release directory, by name. Manifests are read, files not hashed."""
    if not releases_dir.is_dir():
        return []
    names = (path.name for path in sorted(releases_dir.iterdir()) if path.is_dir() and not path.is_symlink())
    return [
        _release_info(releases_dir / name, is_active=name == active_id)
        for name in names
        if re.fullmatch(RELEASE_ID_PATTERN, name)
    ]


def load_release(directory: Path, *, device: str, num_threads: int | None) -> LoadedModel:
    """Verify every file, load, and let the model answer a fixed prompt. `ReleaseError` with what failed."""
    try:
        loaded = load_model(directory, device=device, num_threads=num_threads)
        _probe(loaded)
    except (InferenceError, RegistryError, OSError) as error:
        raise ReleaseError(f"Release {directory.name!r} cannot be served: {error}") from error
    return loaded


def verify_release(directory: Path) -> Manifest:
    """Hash every file; `ReleaseError` with what is missing or differs."""
    try:
        return verify(directory, with_state=False)
    except (RegistryError, OSError) as error:
        raise ReleaseError(f"Release {directory.name!r} is not whole: {error}") from error


def _probe(loaded: LoadedModel) -> None:
    if not loaded.has_finite_weights:
        raise ReleaseError("its weights hold NaN or infinity.")
    reply = generate(loaded, [encode_prompt(loaded, PROBE)], settings=PROBE_SETTINGS)[0]
    if reply.finish_reason == "error":
        raise ReleaseError("its logits are not finite.")


def _release_info(directory: Path, *, is_active: bool) -> ReleaseInfo:
    try:
        sha256: str | None = read_manifest(directory).weights_sha256
        problem = ""
    except RegistryError as error:
        sha256, problem = None, str(error)
    return ReleaseInfo(release_id=directory.name, weights_sha256=sha256, is_active=is_active, problem=problem)
