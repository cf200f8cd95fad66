"""What must not change by accident: a run is refused where its model is not the one that was locked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry.manifests import MANIFEST_NAME
from trainer.config.job import JobConfig, LockedConfig
from trainer.errors import ConfigError

LOCKED_KEYS = tuple(LockedConfig.model_fields)


def check_locked(config: JobConfig) -> None:
    """`ConfigError` at the first locked value that the run's model or max_length does not have."""
    locked, model = config.locked, config.model
    if locked.max_length is not None and locked.max_length != model.max_length:
        raise _refused(
            "max_length", locked=locked.max_length, found=model.max_length, where="model.max_length"
        )
    # What tandem trained or took in lies under a name of its own; the name was checked when it was set.
    if locked.model_name is not None and not (model.path / MANIFEST_NAME).is_file():
        check_model_name(locked.model_name, path=model.path)
    if locked.model_architecture is None and locked.vocab_size is None:
        return
    facts = model_facts(model.path)
    for key in ("model_architecture", "vocab_size"):
        wanted, found = getattr(locked, key), facts[key]
        if wanted is not None and wanted != found:
            raise _refused(key, locked=wanted, found=found, where=f"{model.path / 'config.json'}")


def check_model_name(name: str, *, path: Path) -> None:
    """`ConfigError` unless the model at `path` has this name: its directory's, or what it was saved as."""
    facts = model_facts(path)
    names = sorted({str(facts["saved_as"]).rsplit("/", 1)[-1], path.resolve().name} - {"", "None"})
    if _simple(name.rsplit("/", 1)[-1]) not in map(_simple, names):
        raise ConfigError(
            f"model_name = {name!r} does not agree with the model at {path}, which is {' or '.join(names)}.",
            field="locked.model_name",
            value=name,
            remedy="Set model_name and base_model to the same model.",
        )


def model_facts(path: Path) -> dict[str, Any]:
    """`model_architecture`, `vocab_size`, `saved_as` of a model directory; `ConfigError` without a config."""
    file = path / "config.json"
    try:
        found = json.loads(file.read_bytes())
        architectures = found.get("architectures") or [None]
        saved_as, vocab_size = found.get("_name_or_path"), found.get("vocab_size")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} cannot be read as a model's configuration: {type(error).__name__}.",
            field="model.path",
            value=str(path),
            remedy="Name a directory that save_pretrained() wrote.",
        ) from None
    return {"model_architecture": architectures[0], "vocab_size": vocab_size, "saved_as": saved_as}


def _refused(key: str, *, locked: object, found: object, where: str) -> ConfigError:
    return ConfigError(
        f"{key} is locked to {locked!r}, but {where} has {found!r}.",
        field=f"locked.{key}",
        value=found,
        remedy=f"Use the model that was locked, or change it knowingly: "
        f"`tandem config set locked.{key} {found} --unlock`.",
    )


def _simple(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
